"""The application under uvicorn itself, at a TCP port and a Unix socket: `python -m tests.uvicorn_sockets h11 PATH`.

uvicorn has two parsers of HTTP/1.1, httptools and h11, and serves either one port or one socket by its own flags.
"""

from __future__ import annotations

import signal
import socket
import sys

import uvicorn


def main() -> None:
    """Serve with the parser and at the path of the command line, until a signal."""
    parser, path = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn ends, and then raises it again
    config = uvicorn.Config(
        "imdsproxy.app:create_app",
        factory=True,
        http=parser,
        loop="asyncio",  # uvloop takes every socket that it is given for TCP
        access_log=False,
    )
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        unix.listen()
        sys.stderr.write(f"listening address http://127.0.0.1:{tcp.getsockname()[1]}\n")
        uvicorn.Server(config).run(sockets=[tcp, unix])


if __name__ == "__main__":
    main()
