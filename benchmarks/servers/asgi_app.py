"""A server that is an ASGI application with one constant response, on uvicorn.

The body of every response is read from standard input.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import uvicorn


def main() -> None:
    """Serve on a free port of 127.0.0.1 until a signal arrives; print the address."""
    body = sys.stdin.buffer.read()
    headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", b"%d" % len(body))]

    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        workers=1,
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setblocking(False)  # noqa: FBT003  # the standard library's signature
    print(f"plain: http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
