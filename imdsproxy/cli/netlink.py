"""A netlink socket to the kernel of this network namespace."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import sys
from collections.abc import Callable
from typing import Self

from imdsproxy.cli import rtnetlink
from imdsproxy.cli.rtnetlink import Answers, Held, Link
from imdsproxy.errors import SettingsError

_LONGEST_ANSWER = 1 << 16
_PATIENCE = 10.0  # seconds for an answer of the kernel


class AddressError(SettingsError):
    """The kernel did not make or remove the interface."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number
        """The kernel's error number; 0 if it gave none."""


class Kernel:
    """Sends requests, and reads their answers."""

    def __init__(self, groups: int = 0) -> None:
        """Open the socket. `groups` are the kinds of change that it reports."""
        self._sequences = itertools.count(1)
        self._socket = _open(groups)
        self._socket.settimeout(_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for `select`."""
        return self._socket.fileno()

    def clear(self) -> None:
        """Read a report. One that did not fit, because of too many changes, counts as one."""
        with contextlib.suppress(OSError):
            self._socket.recv(_LONGEST_ANSWER)

    def links(self) -> list[Link]:
        """Return every interface."""
        return self._ask(rtnetlink.ask_links, "list the interfaces").links

    def held(self) -> list[Held]:
        """Return every IPv4 address."""
        return self._ask(rtnetlink.ask_addresses, "list the addresses").held

    def do(self, make: Callable[[int], bytes], what: str) -> None:
        """Send the request that `make` returns for a sequence number. Raise AddressError if the kernel refuses it."""
        self._ask(make, what)

    def _ask(self, make: Callable[[int], bytes], what: str) -> Answers:
        answers = Answers(next(self._sequences))
        try:
            self._socket.send(make(answers.sequence))
            while answers.error is None:
                answers.read(self._socket.recv(_LONGEST_ANSWER))
        except OSError as error:
            raise AddressError(f"cannot {what}: {error.strerror or error}", error.errno or 0) from None
        if answers.error:
            needs = answers.error == errno.EPERM
            why = "this needs root or CAP_NET_ADMIN" if needs else os.strerror(answers.error)
            raise AddressError(f"cannot {what}: {why}", answers.error)
        return answers


def _open(groups: int) -> socket.socket:
    if sys.platform != "linux":
        raise AddressError("only Linux has such interfaces; --print shows the commands for a Linux machine")
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    opened.bind((0, groups))
    return opened
