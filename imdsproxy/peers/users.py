"""Names of users.

They come from /etc/passwd alone. Other sources of names, such as a directory server, may take seconds to answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

_COLUMNS = 3
_SECOND = 1.0


class UserNames:
    """The users of a file in the format of passwd(5). A change of it shows within a second."""

    def __init__(self, path: str = "/etc/passwd", now: Callable[[], float] = time.monotonic) -> None:
        """Read nothing yet.

        Args:
            path: The file.
            now: A monotonic clock, in seconds.
        """
        self._path = Path(path)
        self._now = now
        self._look_again = -math.inf
        self._read: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}

    def of(self, user: int) -> str | None:
        """Return the name of a user id, or None if the file has none."""
        now = self._now()
        if now >= self._look_again:
            self._look_again = now + _SECOND
            self._look()
        return self._names.get(user)

    def _look(self) -> None:
        try:
            found = self._path.stat()
            version = (found.st_ino, found.st_mtime_ns, found.st_size)
            if version != self._read:
                self._names = _parse(self._path.read_text(encoding="utf-8", errors="backslashreplace"))
                self._read = version
        except OSError:
            self._names, self._read = {}, None


def _parse(text: str) -> dict[int, str]:
    """Return the first name of each user id."""
    names: dict[int, str] = {}
    for line in text.splitlines():
        columns = line.split(":")
        if len(columns) >= _COLUMNS and columns[2].isdecimal():
            names.setdefault(int(columns[2]), columns[0])
    return names
