"""The budget of a server's worker processes, if no setting names a file.

`uvicorn --workers`, gunicorn, granian and hypercorn run the application in several processes, and each would have a
budget of its own. On Linux they share a file that this module names. Elsewhere the second worker is refused.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from imdsproxy.errors import ImdsproxyError
from imdsproxy.protocol.address import Address

_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # a folder of one's own is made there, and its owner checked
_held: dict[str, int] = {}  # locks of this process, by path


class NoPlaceError(ImdsproxyError):
    """Workers have no place to share a budget, or there is a second worker where they cannot share one."""


def is_worker() -> bool:
    """Return whether a server has started this process, or is about to, as one of possibly several workers."""
    processes = sys.modules.get("multiprocessing.process")  # uvicorn's, hypercorn's and granian's workers have it
    if processes is not None and processes.parent_process() is not None:
        return True
    return "gunicorn.arbiter" in sys.modules


def shared_path(upstream: Address) -> str:
    """Return the file that all workers of this user share for this upstream. Raise NoPlaceError.

    One VM has one budget, so that workers of different servers may share it as well.
    """
    return str(_own_folder() / f"workers-{_digest(str(upstream))}.budget")


def hold_alone(upstream: Address) -> None:
    """Claim to be the only worker of the parent process. Raise NoPlaceError if another process already is."""
    path = str(_own_folder() / f"worker-{_digest(f'{os.getppid()} {upstream}')}.lock")
    if path not in _held:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise NoPlaceError("another worker is running, and workers can share a budget on Linux only") from None
        _held[path] = descriptor  # the end of the process releases the lock


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _own_folder() -> Path:
    """Return a folder that only this user can write to, even if others can write to its parent."""
    why = "there is no folder to share"
    for place in (_SHARED_MEMORY, tempfile.gettempdir()):
        folder = Path(place) / f"imdsproxy-{_user()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if _is_own(folder.lstat()):
                return folder
            why = f"{folder} is not this user's own folder"
        except OSError as error:
            why = f"{folder}: {error.strerror}"
    raise NoPlaceError(why)


def _user() -> str:
    if sys.platform == "win32":
        return "workers"  # each user has a temporary folder
    return str(os.geteuid())


def _is_own(found: os.stat_result) -> bool:
    if sys.platform == "win32":
        return True
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415  # Windows only

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl  # noqa: PLC0415  # POSIX only

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
