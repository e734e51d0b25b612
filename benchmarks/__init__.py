"""How fast and how large the proxy is, beside other caches: `python -m benchmarks`. README.md has the details.

`benchmarks.scaling` simulates the layouts of a node in virtual time: `python -m benchmarks.scaling`.
`benchmarks.soak` runs the proxy for minutes or hours and judges it: `python -m benchmarks.soak`.
"""
