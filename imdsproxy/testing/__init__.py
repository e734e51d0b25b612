"""Helpers for tests of this project, and of programs that use IMDS."""
