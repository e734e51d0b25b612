"""Send requests from a host, each over a connection of its own, and print the answers as JSON.

    python -IS client.py JSON

This is what most real clients come down to. It needs few imports, because the tests start hundreds of it.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def main() -> None:
    """Read host, port, target, header fields, how many times and the timeout in seconds from the command line."""
    host, port, target, headers, times, timeout = json.loads(sys.argv[1])
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"GET {target} HTTP/1.1\r\n{fields}\r\n".encode()
    json.dump([_answer((host, port), head, timeout) for _ in range(times)], sys.stdout)


def _answer(address: tuple[str, int], sent: bytes, timeout: float) -> dict[str, object]:
    began = time.monotonic()
    found: dict[str, object] = {"status": 0, "headers": [], "body": "", "error": ""}
    try:
        with socket.create_connection(address, timeout) as connection:
            connection.sendall(sent)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, body = received.decode("latin-1").partition("\r\n\r\n")
        status, *lines = head.split("\r\n")
        headers = [[part.strip() for part in line.split(":", 1)] for line in lines]
        found.update(status=int(status.split()[1]), headers=headers, body=body)
    except (OSError, IndexError) as error:
        found["error"] = str(error) or type(error).__name__
    found["seconds"] = time.monotonic() - began
    return found


if __name__ == "__main__":
    main()
