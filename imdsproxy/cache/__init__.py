"""Stored answers: how long each may be used, and the bytes in which it is served.

`freshness` decides, `store` keeps the entries, `rendered_hit` writes them. This room never sends to IMDS and never
waits. It knows no upstream and no budget.
"""
