"""The frozen values that flow through the proxy, and the one reader of requests.

Everything may import from here. This room knows no clock, no network and no other room; it holds no state but bounded
memories of pure functions.
"""
