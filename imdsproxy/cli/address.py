"""`imdsproxy address`: give this machine a link-local address for its proxy, for as long as the command runs."""

from __future__ import annotations

import errno
import select
import signal
import socket
from collections.abc import Mapping

from imdsproxy.cli import rtnetlink
from imdsproxy.cli.netlink import AddressError, Kernel
from imdsproxy.cli.node_address import (
    ALIAS,
    DEFAULT_ADDRESS,
    DEFAULT_INTERFACE,
    KINDS,
    commands,
    find_own,
    read_address,
    read_interface,
    refuse_taken,
    removal,
)
from imdsproxy.cli.rtnetlink import Link
from imdsproxy.cli.standard_streams import complain, show

_ENDING = (signal.SIGTERM, signal.SIGINT)
_UNREAD_STATUS = 1


def address(options: Mapping[str, str]) -> int:
    """Run the command, and return the exit status."""
    wanted = read_address(options.get("address", DEFAULT_ADDRESS))
    name = read_interface(options.get("interface", DEFAULT_INTERFACE))
    if "print" in options:
        return 0 if show(removal(name) if "remove" in options else commands(wanted, name)) else _UNREAD_STATUS
    if "remove" in options:
        with Kernel() as kernel:
            complain(f"imdsproxy: {_gone(name) if drop(kernel, name) else f'there is no interface {name}'}")
        return 0
    _hold(wanted, name)
    return 0


def put(kernel: Kernel, wanted: str, name: str) -> bool:
    """Make the interface and its address where they are missing, and return whether anything was.

    What an earlier run left is used if its address is the same, and replaced if not.
    """
    links, held = kernel.links(), kernel.held()
    own = find_own(name, links, held)
    refuse_taken(wanted, own, links, held)
    if own is not None:
        if {each.address for each in held if each.link == own.number} == {wanted}:
            return False
        _remove(kernel, own)
    _make_link(kernel, name)
    made = find_own(name, kernel.links(), held)
    if made is None:
        raise AddressError(f"the interface {name} has been removed by another program at once")
    kernel.do(lambda number: rtnetlink.raise_link(number, made.number, ALIAS), f"bring up {name}")
    kernel.do(lambda number: rtnetlink.add_address(number, made.number, wanted), f"add {wanted} to {name}")
    return True


def drop(kernel: Kernel, name: str) -> bool:
    """Remove the interface if this command has made it, and return whether it was there."""
    own = find_own(name, kernel.links(), kernel.held())
    if own is not None:
        _remove(kernel, own)
    return own is not None


def _remove(kernel: Kernel, own: Link) -> None:
    kernel.do(lambda number: rtnetlink.remove_link(number, own.number), f"remove {own.name}")


def _make_link(kernel: Kernel, name: str) -> None:
    what = f"make the interface {name}"
    try:
        kernel.do(lambda number: rtnetlink.make_link(number, name, KINDS[0]), what)
    except AddressError as error:
        if error.number != errno.EOPNOTSUPP:
            raise
        kernel.do(lambda number: rtnetlink.make_link(number, name, KINDS[1]), what)


def _hold(wanted: str, name: str) -> None:
    """Keep the address until SIGTERM or SIGINT, then remove it."""
    wake, woken = socket.socketpair()
    with wake, woken, Kernel() as kernel, Kernel(rtnetlink.ADDRESS_CHANGES) as changes:
        woken.setblocking(False)  # noqa: FBT003  # the standard library's signature
        before = signal.set_wakeup_fd(woken.fileno())
        for each in _ENDING:
            # Without a handler, the kernel does not deliver the signal to a container's first process.
            signal.signal(each, lambda *_: None)
        try:
            how = "has" if put(kernel, wanted, name) else "still has, from an earlier run,"
            complain(f"imdsproxy: this machine {how} the address {wanted}, on the interface {name}")
            _keep(wanted, name, kernel, changes, wake)
            if drop(kernel, name):
                complain(f"imdsproxy: {_gone(name)}")
        finally:
            signal.set_wakeup_fd(before)


def _keep(wanted: str, name: str, kernel: Kernel, changes: Kernel, wake: socket.socket) -> None:
    while wake.fileno() not in select.select([wake.fileno(), changes.fileno()], [], [])[0]:
        changes.clear()
        if put(kernel, wanted, name):
            complain(f"imdsproxy: another program had removed the address {wanted}; it is back")


def _gone(name: str) -> str:
    return f"the interface {name} and its address are removed"
