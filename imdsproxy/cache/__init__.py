"""Stored answers: how long each may be used, and the bytes in which it is served.

`freshness` decides, `store` keeps, `rendered_hit` writes. This room never asks IMDS and never waits; it knows no
upstream and no budget.
"""
