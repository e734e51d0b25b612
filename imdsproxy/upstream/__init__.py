"""Requests to IMDS: one HTTP client, retries, health, collapsed fetches.

`fetcher` performs; `retry`, `health` and `headers` decide. Only `exchange` imports h11. This room knows nothing of the
cache.
"""
