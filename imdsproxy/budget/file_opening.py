"""Opening the file of a shared budget, or making it. What cannot be trusted, or holds something else, is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from imdsproxy import files
from imdsproxy.budget import shared_record as records
from imdsproxy.errors import BudgetFileError

assert sys.platform == "linux"  # noqa: S101  # as in `shared_file`

_OWNER_AND_GROUP = 0o660  # the group shares it


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
            descriptor = os.open(path, os.O_RDWR | files.OPENED)
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
    """Make the file of a budget; see `files.make`."""
    files.make(path, content, put, _OWNER_AND_GROUP)


def _check(descriptor: int, parent: Path, complain: Callable[[str], None]) -> None:
    folder = parent.stat()
    file = os.fstat(descriptor)
    why = files.doubt(file, folder, os.geteuid(), {os.getegid(), *os.getgroups()})
    if why is None and records.foreign(os.pread(descriptor, len(records.MAGIC), 0)):
        why = "it is not a budget file; name another"
    if why is not None:
        raise BudgetFileError(why)
    if files.exposed(folder):
        complain("is in a folder that every user can write to; name a file in another folder")
