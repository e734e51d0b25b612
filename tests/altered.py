"""`imdsproxy` with alterations that no setting offers: `python -m tests.altered keep_alive=0.5 without_fast_path`.

Each is made before the proxy starts. Everything else comes from the environment.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable
from typing import Any

from imdsproxy.cli import main as program


def keep_alive(seconds: str) -> None:
    """Close idle connections after these seconds: 75 suit clients, and are too long for a test."""
    from imdsproxy.server.connection import Connection  # noqa: PLC0415  # as late as the proxy imports it

    Connection.keep_alive = float(seconds)


def first_bytes(seconds: str) -> None:
    """Wait these seconds at the end for the first bytes of new connections."""
    from imdsproxy.server import run  # noqa: PLC0415  # as above

    run._Server.first_bytes = float(seconds)


def without_fast_path(_: str) -> None:
    """Send every request to the application."""
    from imdsproxy.server import fast_path, first_request  # noqa: PLC0415  # as above
    from imdsproxy.server.connection import Connection  # noqa: PLC0415  # as above

    fast_path.FastPathConnection = Connection  # type: ignore[misc, assignment]
    first_request.FirstRequests.answer = lambda *_: None  # type: ignore[method-assign]


def counting(_: str) -> None:
    """Print at the end how many heads were read to find a hit, and how many were known."""
    from imdsproxy.server.application import Application  # noqa: PLC0415  # as above
    from imdsproxy.server.known_heads import KnownHeads  # noqa: PLC0415  # as above

    counts = {"read": 0, "known": 0}
    fresh_hit, find = Application.fresh_hit, KnownHeads.find

    def counted_fresh_hit(*given: Any, **named: Any) -> Any:
        counts["read"] += 1
        return fresh_hit(*given, **named)

    def counted_find(*given: Any, **named: Any) -> Any:
        found = find(*given, **named)
        counts["known"] += found is not None
        return found

    Application.fresh_hit, KnownHeads.find = counted_fresh_hit, counted_find  # type: ignore[method-assign]
    atexit.register(lambda: sys.stderr.write(f"counted {counts['read']} {counts['known']}\n"))


def log_waiting(characters: str) -> None:
    """Let so many characters of the log wait to be written."""
    from imdsproxy.ops import log_writer  # noqa: PLC0415  # as above

    log_writer.MOST_WAITING = int(characters)


def collector(_: str) -> None:
    """Print at the end how many objects the garbage collector ignores, and after how many new ones it runs."""
    atexit.register(lambda: sys.stderr.write(f"collector {gc.get_freeze_count()} {gc.get_threshold()[0]}\n"))


ALTERATIONS: dict[str, Callable[[str], None]] = {
    each.__name__: each for each in (keep_alive, first_bytes, without_fast_path, counting, log_waiting, collector)
}


def main() -> int:
    """Make the alterations of the command line, and run the program without arguments."""
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        ALTERATIONS[name](value)
    sys.argv[1:] = []
    return program.main()


if __name__ == "__main__":
    raise SystemExit(main())
