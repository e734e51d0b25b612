"""What an operator sees: metrics, readiness, pages under `/-/`, logs.

This room receives records and reads state. It decides nothing about a request. Nothing below the server imports it.
"""
