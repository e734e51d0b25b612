"""How fast and how large the proxy is, beside other caches: `python -m benchmarks`. README.md has the details.

`benchmarks.scaling` simulates the layouts of a node in virtual time: `python -m benchmarks.scaling`.
"""
