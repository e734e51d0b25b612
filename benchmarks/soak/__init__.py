"""The soak: the proxy for minutes or hours, with real clients, faults of IMDS and floods, and a verdict at the end.

`docs/reliability.md` explains the verdict.
"""
