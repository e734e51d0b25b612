"""Opening the file of a shared budget, or making it. What cannot be trusted, or holds something else, is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from imdsproxy.budget import shared_record as records
from imdsproxy.budget.file_trust import doubt, exposed
from imdsproxy.errors import BudgetFileError

assert sys.platform == "linux"  # noqa: S101  # as in `shared_file`

_OWNER_AND_GROUP = 0o660
_OPENED = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def open_or_make(path: Path, new: Callable[[], bytes], complain: Callable[[str], None]) -> int:
    """Open a file, or make it, and return its descriptor.

    Args:
        path: The path of the file.
        new: Returns the content of a new file.
        complain: Logs a line about a file that is usable, but in a doubtful place.

    Raises:
        BudgetFileError: The file is not a budget, or is not trusted.
        OSError: It cannot be opened or made.
    """
    while True:
        try:
            descriptor = os.open(path, _OPENED)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # another process was first, and its file will do
                make(path, new(), os.link)
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise BudgetFileError("it is a symbolic link; name the file itself") from None
            raise
        try:
            _check(descriptor, path.parent, complain)
        except (OSError, BudgetFileError):
            os.close(descriptor)
            raise
        return descriptor


def make(path: Path, content: bytes, put: Callable[[Path, Path], object]) -> None:
    """Make a complete file or none, so that no process ever sees a part of one.

    Args:
        path: The path of the file.
        content: Its content.
        put: Moves the finished file to its path: `os.link`, or `os.replace` if there may be one already.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, _OPENED | os.O_CREAT | os.O_EXCL, _OWNER_AND_GROUP)
    try:
        os.fchmod(descriptor, _OWNER_AND_GROUP)  # independent of the umask, because the group shares it
        os.pwrite(descriptor, content, 0)
        put(unfinished, path)
    finally:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)


def _check(descriptor: int, parent: Path, complain: Callable[[str], None]) -> None:
    folder = parent.stat()
    file = os.fstat(descriptor)
    why = doubt(file, folder, os.geteuid(), {os.getegid(), *os.getgroups()})
    if why is None and records.foreign(os.pread(descriptor, len(records.MAGIC), 0)):
        why = "it is not a budget file; name another"
    if why is not None:
        raise BudgetFileError(why)
    if exposed(folder):
        complain("is in a folder that every user can write to; name a file in another folder")
