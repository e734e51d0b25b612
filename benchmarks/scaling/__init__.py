"""A simulated node: its pods, the real proxies in one of five layouts, and IMDS with its limits, in virtual time.

The tables go into `docs/scaling.md`. The same code gives the same figures on every machine.
"""
