"""The probes: they read the machine and ask the proxy or IMDS, and end in `facts.Facts`. They judge nothing.

Every probe reads only. Where a probe sends something, it is to the proxy's own pages, or one of the few requests of
`asking`, which keeps to one request a second.
"""
