"""Names of users.

They come from /etc/passwd alone. Other sources of names, such as a directory server, may take seconds to answer.
"""

from __future__ import annotations

from pathlib import Path

_COLUMNS = 3


class UserNames:
    """The users of a file in the format of passwd(5). It is read again when it changes."""

    def __init__(self, path: str = "/etc/passwd") -> None:
        self._path = Path(path)
        self._read: tuple[int, int, int] | None = None
        self._names: dict[int, str] = {}

    def of(self, user: int) -> str | None:
        """Return the name of a user id, or None if the file has none."""
        try:
            now = self._path.stat()
            version = (now.st_ino, now.st_mtime_ns, now.st_size)
            if version != self._read:
                self._names = _parse(self._path.read_text(encoding="utf-8", errors="backslashreplace"))
                self._read = version
        except OSError:
            self._names, self._read = {}, None
        return self._names.get(user)


def _parse(text: str) -> dict[int, str]:
    """Return the first name of each user id."""
    names: dict[int, str] = {}
    for line in text.splitlines():
        columns = line.split(":")
        if len(columns) >= _COLUMNS and columns[2].isdecimal():
            names.setdefault(int(columns[2]), columns[0])
    return names
