"""What an operator sees: metrics, readiness, pages under `/-/`, logs.

This room is told records and reads state; it decides nothing about a request. Nothing below the server imports it.
"""
