"""How fast and how large the proxy is, measured beside what it is compared with: `python -m benchmarks`."""
