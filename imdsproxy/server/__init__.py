"""HTTP towards clients: listeners, connections with limits, the fast path, the ASGI application.

`application` reads requests from ASGI, has them answered by `metadata` or `operations`, and reports the answers.
`connection` and `fast_path` are uvicorn's protocol with limits. This room takes a `Config` or plain values, and never
imports `settings`.
"""
