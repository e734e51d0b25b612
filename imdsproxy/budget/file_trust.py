"""Which files of a shared budget are trusted. A user that can write to one can use up this VM's allowance."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection

_ROOT = 0


def doubt(file: os.stat_result, folder: os.stat_result, user: int, groups: Collection[int] = ()) -> str | None:
    """Return why this user must not use a file, with the remedy, or None if it may.

    The file must belong to this user, to root, or to the owner of its folder, who could replace it anyway. It may also
    belong to a group of this process that can write to it, if only owner and group can write to its folder, because
    containers of several users share a file by their group. Other users must not be able to write to it.
    """
    if not stat.S_ISREG(file.st_mode):
        return "it is not a regular file; name another"
    by_group = file.st_gid in groups and bool(file.st_mode & stat.S_IWGRP) and not exposed(folder)
    if file.st_uid not in {user, _ROOT, folder.st_uid} and not by_group:
        return (
            f"it belongs to user {file.st_uid}, and this proxy runs as user {user}; remove it, or name a file in a "
            "folder that other users cannot write to"
        )
    if file.st_mode & stat.S_IWOTH:
        return (
            f"every user may write to it (mode {stat.S_IMODE(file.st_mode):04o}), so its content may be forged; remove "
            "it, and the proxy creates a new one"
        )
    return None


def exposed(folder: os.stat_result) -> bool:
    """Return whether every user can put files into this folder."""
    return bool(folder.st_mode & stat.S_IWOTH)
