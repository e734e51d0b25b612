"""Requests to IMDS: one HTTP client, retries, health, collapsed fetches.

`fetcher` performs; `retry`, `health` and `headers` decide. Only `client` imports httpx. This room knows nothing of the
cache.
"""
