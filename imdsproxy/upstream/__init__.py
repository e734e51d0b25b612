"""The way to IMDS: one HTTP client, retries, health, collapsed fetches.

`fetcher` performs; `retry`, `health` and `headers` decide. `client` is the only module that imports httpx. This room
knows nothing of what is stored.
"""
