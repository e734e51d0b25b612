"""The file in which a process leaves entries for the next one: reading, making and removing it.

Only its owner may read or write it. It is read once and removed, so that no later process finds entries that were
dropped meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from imdsproxy import files
from imdsproxy.cache import handover
from imdsproxy.cache.handover import UnusableError

assert sys.platform == "linux"  # noqa: S101  # the setting is refused elsewhere; this tells the type checker

MODE = 0o600


def obstacle(path: Path) -> str | None:
    """Return why no file can be made at this path, with the remedy, or None."""
    folder = path.parent
    if not folder.is_dir():
        return f"{folder} is not a folder; make it, or name a file in one that exists"
    if path.is_dir():
        return "it is a folder; name a file in it"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"user {os.geteuid()} may not write to {folder}; name a file in a folder of the proxy's user"
    return None


def look(path: Path, most: int) -> bytes | None:
    """Return the content of a file that can be trusted, or None if there is no file.

    Args:
        path: The path of the file.
        most: The most bytes that it may have.

    Raises:
        UnusableError: The file is not trusted, or too large.
        OSError: It cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | files.OPENED)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnusableError("it is a symbolic link; name the file itself") from None
        raise
    try:
        found = os.fstat(descriptor)
        why = files.doubt(found, path.parent.stat(), os.geteuid())
        if why is None and stat.S_IMODE(found.st_mode) & ~MODE:
            why = f"other users have rights to it (mode {stat.S_IMODE(found.st_mode):04o}); remove it"
        if why is None and found.st_size > most:
            why = f"it has {found.st_size} bytes, and IMDSPROXY_CACHE_MAX_BYTES allows {most}"
        if why is not None:
            raise UnusableError(why)
        content = b""
        while len(content) <= most and (part := os.read(descriptor, most + 1 - len(content))):
            content += part
        return content
    finally:
        os.close(descriptor)


def take(path: Path, most: int) -> bytes | None:
    """Return the content of a file, and remove it; None if there is none. It stays if another program made it.

    Raises:
        UnusableError: The file is not trusted, or too large.
        OSError: It cannot be read or removed.
    """
    content = look(path, most)
    if content is not None and not handover.foreign(content):
        path.unlink()
    return content


def leave(path: Path, content: bytes) -> None:
    """Make the file, in place of an earlier one.

    Raises:
        UnusableError: Another program made the file that is there.
        OSError: It cannot be made.
    """
    if _is_foreign(path):
        raise UnusableError("it is not a handover file; name another")
    files.make(path, content, os.replace, MODE)


def remove(path: Path) -> None:
    """Remove the file, unless another program made it."""
    with contextlib.suppress(OSError):
        if not _is_foreign(path):
            path.unlink(missing_ok=True)


def _is_foreign(path: Path) -> bool:
    """Return whether a file of another program is at this path. One that cannot be read counts as one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | files.OPENED)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return not is_file or handover.foreign(os.pread(descriptor, len(handover.MAGIC), 0))
    finally:
        os.close(descriptor)
