"""Helpers for tests of programs that use IMDS, and of this project."""
