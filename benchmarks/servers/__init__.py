"""The servers that are compared: the proxy, other caches, two servers without a cache, and the emulated IMDS.

`bench` starts and ends them; `configurations/` has the settings of the other caches.
"""
