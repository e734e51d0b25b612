"""Whose a file of a shared budget may be: whoever can write it can spend this VM's allowance, or block it."""

from __future__ import annotations

import os
import stat

_ROOT = 0


def doubt(file: os.stat_result, folder: os.stat_result, user: int) -> str | None:
    """Return why a file is not to be used by this user, with the remedy, or None if it may be.

    It has to belong to this user, to root, or to the owner of its folder, who could replace it anyway. Its group may
    write it, because containers share it by their group; all others may not.
    """
    if not stat.S_ISREG(file.st_mode):
        return "it is no ordinary file; name another"
    if file.st_uid not in {user, _ROOT, folder.st_uid}:
        return (
            f"it belongs to user {file.st_uid}, and this proxy runs as user {user}; remove it, or name a file in a "
            "folder that other users cannot write to"
        )
    if file.st_mode & stat.S_IWOTH:
        return (
            f"every user may write it (mode {stat.S_IMODE(file.st_mode):04o}), so what it says may be forged; remove "
            "it, and the proxy makes a new one"
        )
    return None


def exposed(folder: os.stat_result) -> bool:
    """Return whether every user can put files into this folder."""
    return bool(folder.st_mode & stat.S_IWOTH)
