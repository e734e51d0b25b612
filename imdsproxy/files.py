"""Files that processes of a machine hand to each other: which to trust, and making one whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Callable, Collection
from pathlib import Path

assert sys.platform == "linux"  # noqa: S101  # the settings are refused elsewhere; this tells the type checker

OPENED = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""Flags with which such a file is opened: no link is followed, and nothing waits."""
_ROOT = 0
_NOT_REGULAR = "it is not a regular file; name another"


def doubt(file: os.stat_result, folder: os.stat_result, user: int, groups: Collection[int] = ()) -> str | None:
    """Return why this user must not use a file, with the remedy, or None if it may.

    The file must belong to this user, to root, or to the owner of its folder, who could replace it anyway. It may also
    belong to a group of this process that can write to it, if only owner and group can write to its folder: containers
    of several users share a file in this way. Other users must not be able to write to it.
    """
    if not stat.S_ISREG(file.st_mode):
        return _NOT_REGULAR
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


def doubt_of_rules(file: os.stat_result, folder: os.stat_result, user: int) -> str | None:
    """Return why this user must not obey the rules in a file, with the remedy, or None if it may.

    Only its owner may be able to write to it: this user, root, or the owner of its folder. Users in its group are often
    those that the rules are to bind.
    """
    if not stat.S_ISREG(file.st_mode):
        return _NOT_REGULAR
    if file.st_uid not in {user, _ROOT, folder.st_uid}:
        return f"it belongs to user {file.st_uid}, and this proxy runs as user {user}; chown it to root or that user"
    if file.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return (
            f"others than its owner may write to it (mode {stat.S_IMODE(file.st_mode):04o}), and so give themselves "
            "what they want; run chmod go-w on it"
        )
    return None


def exposed(folder: os.stat_result) -> bool:
    """Return whether every user can put files into this folder."""
    return bool(folder.st_mode & stat.S_IWOTH)


def make(path: Path, content: bytes, put: Callable[[Path, Path], object], mode: int) -> None:
    """Make a complete file or none, so that no process ever sees a part of one.

    Args:
        path: The path of the file.
        content: Its content.
        put: Moves the finished file to its path: `os.link`, or `os.replace` if there may be one already.
        mode: Its permissions, independent of the umask.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_RDWR | OPENED | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.fchmod(descriptor, mode)
        written = 0
        while written < len(content):
            written += os.pwrite(descriptor, memoryview(content)[written:], written)
        put(unfinished, path)
    finally:
        os.close(descriptor)
        unfinished.unlink(missing_ok=True)
