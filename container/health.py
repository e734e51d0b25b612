"""The images' health check: requests /-/healthy from every address on which the proxy listens by its settings.

An argument HOST:PORT names the one address instead, for the emulator, which has no settings. The status is 0 if each of
them answers 200, otherwise 1 with the reason in one line. The settings come from the environment and
IMDSPROXY_CONFIG_FILE; this process cannot see flags. It runs as `python -IS` every few seconds on every machine, so it
imports as little as possible.
"""  # noqa: INP001  # a program in a folder, not a package

import sys
from _socket import AF_UNIX, SOCK_STREAM, getaddrinfo, socket
from os import environ

_NAMES = ("HOST", "PORT", "ADMIN_HOST", "ADMIN_PORT", "UDS")
_TIMEOUT = 2.0
_REQUEST = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def main() -> int:
    """Check every listener, and return the exit status."""
    try:
        for host, port in map(_named, sys.argv[1:]) if sys.argv[1:] else _places(_settings()):
            _ask(host, port)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"not healthy: {error}\n")
        return 1
    return 0


def _named(place: str) -> tuple[str, int | None]:
    host, _, port = place.rpartition(":")
    return host, int(port)


def _settings() -> dict[str, str]:
    found = {name: environ[f"IMDSPROXY_{name}"] for name in _NAMES if f"IMDSPROXY_{name}" in environ}
    if file := environ.get("IMDSPROXY_CONFIG_FILE"):
        import tomllib  # noqa: PLC0415  # importing it takes as long as all the rest

        with open(file, encoding="utf-8-sig") as opened:  # noqa: PTH123  # importing pathlib takes time
            kept = tomllib.loads(opened.read())
        found = {name: str(kept[name.lower()]) for name in _NAMES if name.lower() in kept} | found
    return found


def _places(settings: dict[str, str]) -> list[tuple[str, int | None]]:
    """Return host and port of each listener with a known port, and path and None of a Unix socket.

    Raises:
        OSError: there is no such listener.
    """
    host = settings.get("HOST") or "127.0.0.1"
    listeners = [(host, settings.get("PORT", "8254")), (settings.get("ADMIN_HOST") or host, settings.get("ADMIN_PORT"))]
    places: list[tuple[str, int | None]] = [(where, int(port)) for where, port in listeners if port and int(port)]
    if path := settings.get("UDS"):
        places.append((path, None))
    if not places:
        raise OSError("the port is not known (IMDSPROXY_PORT=0); set IMDSPROXY_ADMIN_PORT or IMDSPROXY_UDS as well")
    return places


def _ask(host: str, port: int | None) -> None:
    """Request /-/healthy from one listener; raise OSError if the status is not 200."""
    place = host if port is None else f"{host}:{port}"
    try:
        family, address = (AF_UNIX, host) if port is None else _address(host, port)
        connection = socket(family, SOCK_STREAM)
        try:
            connection.settimeout(_TIMEOUT)
            connection.connect(address)
            connection.sendall(_REQUEST)
            answer = b""
            while b"\n" not in answer and (part := connection.recv(4096)):
                answer += part
        finally:
            connection.close()
    except OSError as error:
        raise OSError(f"{place}: {error}") from None
    line = answer.partition(b"\r\n")[0].decode("latin-1")
    if line.split(" ")[1:2] != ["200"]:
        raise OSError(f"{place} answers {line!r}")


def _address(host: str, port: int) -> tuple[int, tuple[object, ...]]:
    # As bytes, because text would load the IDNA codec first, which takes as long as all the rest.
    found = getaddrinfo(_WILDCARDS.get(host, host).encode(), port, 0, SOCK_STREAM)[0]
    return found[0], found[4]


if __name__ == "__main__":
    sys.exit(main())
