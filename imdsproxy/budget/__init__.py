"""Permits: the right to send one request to IMDS, and the queue before them.

`bucket` has the arithmetic and its proof, `limiter` the queue, `shared*` the file through which several proxies share
one budget. This room knows nothing of caching, HTTP, or the use of a permit.
"""
