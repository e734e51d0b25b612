"""The limit of open files, each connection among them."""

from __future__ import annotations

import contextlib

_WANTED = 20_000
_WITHOUT_LIMITS = 512
"""Assumed on systems that do not state a limit, such as Windows."""


def raise_limit() -> int:
    """Raise the limit for this process and for each that it starts, and return the limit then in force."""
    with contextlib.suppress(ImportError):
        import resource  # noqa: PLC0415  # there is none on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = (resource.RLIM_INFINITY, -1)
        wanted = _WANTED if hard in unlimited else min(_WANTED, hard)
        if soft in unlimited or soft >= wanted:
            return wanted
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
        return soft
    return _WITHOUT_LIMITS
