"""The frozen values that flow through the proxy, and the only way in which a request is read.

Everything may import from here. This room knows no clock, no network and no other room; it holds no state but bounded
memories of pure functions.
"""
