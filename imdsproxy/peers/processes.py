"""The process that has a socket: a search through the descriptors of a user's processes in /proc (proc(5)).

A search takes milliseconds, so it runs in a thread, and one search serves all requests that came during the last one.
It is made only for processes that the proxy may read: those of its own user, or of every user as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

LONGEST_SEARCH = 0.2
"""Seconds of the processor after which a search ends. Sockets that it has not found by then have no known process.

The processor's time counts, because a busy machine would otherwise end searches early, and access rules would refuse
clients whose program was not found."""
LONGEST_WAIT = 2.0
"""Seconds after which a search ends in any case."""
_SO_PEERPIDFD = 77  # since Linux 6.5
_NO_SUCH_OPTION = errno.ENOPROTOOPT
_SYS_PTRACE = 19  # the capability that allows to read the descriptors of other users' processes


class Holder(NamedTuple):
    """The process that has a socket."""

    process: int
    executable: str | None
    """None if it may not be read, or if several processes with different programs have the socket."""


class ProcessSearch:
    """Searches for processes, one search at a time. Only the event loop's thread may use it."""

    def __init__(self, folder: str = "/proc") -> None:
        self._folder = folder
        self._wanted: dict[int, tuple[int, asyncio.Future[Holder | None]]] = {}
        self._searching: asyncio.Task[None] | None = None
        self._sees_everyone = os.name == "posix" and sees_everyone(folder)

    def may_find(self, user: int) -> bool:
        """Return whether the descriptors of this user's processes may be read."""
        return sys.platform == "linux" and (self._sees_everyone or user == os.geteuid())

    async def find(self, user: int, inode: int) -> Holder | None:
        """Return the process of this user that has a socket, or None if none is found."""
        known = self._wanted.get(inode)
        if known is None:
            known = self._wanted[inode] = (user, asyncio.get_running_loop().create_future())
        if self._searching is None:
            self._searching = asyncio.get_running_loop().create_task(self._search())
        return await asyncio.shield(known[1])

    async def _search(self) -> None:
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                users = {inode: user for inode, (user, _) in wanted.items()}
                found = await asyncio.to_thread(search, users, self._folder)
                for inode, (_, future) in wanted.items():
                    future.set_result(found.get(inode))
        finally:
            self._searching = None


def search(wanted: Mapping[int, int], folder: str = "/proc") -> dict[int, Holder]:
    """Return the process of each socket, for those that are found in time.

    Args:
        wanted: Users by the inode of their socket. Processes of other users that have the socket do not count.
        folder: Where the processes are.
    """
    end, last = time.thread_time() + LONGEST_SEARCH, time.monotonic() + LONGEST_WAIT
    links = {f"socket:[{inode}]": (inode, user) for inode, user in wanted.items()}
    found: dict[int, Holder] = {}
    for process in _processes(set(wanted.values()), folder):
        for descriptor, target in _descriptors(process, folder):
            inode, user = links.get(target, (0, -1))
            if inode and user in _users(process, folder):
                program = program_of(process, folder)
                if _link(descriptor) == target:  # else the number may be another process's by now
                    known = found.get(inode)
                    found[inode] = Holder(process, program) if known is None else _both(known, process, program)
        # Another process with another program may have the same socket.
        if time.thread_time() > end or time.monotonic() > last:
            return {inode: holder._replace(executable=None) for inode, holder in found.items()}
    return found


def _both(known: Holder, process: int, program: str | None) -> Holder:
    same = program == known.executable
    return Holder(min(known.process, process), program if same else None)


def _processes(users: set[int], folder: str) -> Iterator[int]:
    """Yield the processes that may be these users', the newest first. Some of any user belong to root in /proc."""
    names = sorted((int(name) for name in os.listdir(folder) if name.isdecimal()), reverse=True)  # noqa: PTH208  # text
    for process in names:
        with contextlib.suppress(OSError):
            owner = os.stat(f"{folder}/{process}").st_uid  # noqa: PTH116  # a path object takes longer than the call
            if owner in users or owner == 0:
                yield process


def _descriptors(process: int, folder: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each open descriptor, and what it refers to."""
    base = f"{folder}/{process}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(base):  # noqa: PTH208  # text
            path = f"{base}/{name}"
            target = _link(path)
            if target is not None:
                yield path, target


def _users(process: int, folder: str) -> frozenset[int]:
    """Return the real and the effective user of a process."""
    with contextlib.suppress(OSError):
        for line in Path(folder, str(process), "status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Uid:"):
                return frozenset(map(int, line.split()[1:3]))
    return frozenset()


def program_of(process: int, folder: str = "/proc") -> str | None:
    """Return the path of a process's program, or None if it may not be read.

    In a mount namespace of its own, which any user may have, a process can put another file at that path. So there is
    no program either if this process sees another file there.
    """
    link = f"{folder}/{process}/exe"
    program = _link(link)
    if program is not None:
        with contextlib.suppress(OSError):  # there is no such file here
            if not os.path.samefile(program, link):  # noqa: PTH121  # text, as above
                return None
    return program


def program_at(connection: socket.SocketType, process: int, user: int) -> str | None:
    """Return the program of the process at the other end of a Unix socket, or None if it may not be read or has ended.

    The number of a process that has ended can be another one's. A descriptor of the process shows whether it lives.
    Before Linux 6.5 there is none, and only the user is compared.
    """
    program = program_of(process)
    if sys.platform != "linux" or program is None or user not in _users(process, "/proc"):
        return None
    try:
        descriptor = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        return program if error.errno == _NO_SUCH_OPTION else None
    try:
        alive = select.poll()  # unlike select(2), it takes any descriptor
        alive.register(descriptor, select.POLLIN)
        ended = alive.poll(0)
    finally:
        os.close(descriptor)
    return None if ended else program


def sees_everyone(folder: str = "/proc") -> bool:
    """Return whether this process may read the descriptors of every user's processes."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(folder, "self", "status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _SYS_PTRACE & 1)
    return False


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115  # the text, which need not be a path of this machine
    except OSError:
        return None
