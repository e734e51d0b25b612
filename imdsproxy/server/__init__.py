"""HTTP towards clients: listeners, connections with limits, the fast path, the ASGI application.

`application` turns ASGI messages into a `Request`, and a record into ASGI messages. `connection` and `fast_path` are
uvicorn's protocol with limits. This room takes a `Config` or plain values, and never imports `settings`.
"""
