"""Network namespaces: loopbacks that are not this machine's own (Linux)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from tests.kernel import CLONE_NEWNET, call

_OWN_NETWORK = "/proc/thread-self/ns/net"
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def bring_loopback_up() -> None:
    """Bring up the loopback of the network that this thread is in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


class Network:
    """A network namespace that a descriptor of this process holds open."""

    def __init__(self) -> None:
        """Make the namespace, with its loopback up; OSError if this process may not."""
        with _coming_back():
            call("unshare", CLONE_NEWNET)
            bring_loopback_up()
            self.descriptor = os.open(_OWN_NETWORK, os.O_RDONLY)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Move the calling thread into the network and back; sockets made and threads started in it stay there."""
        with _coming_back():
            call("setns", self.descriptor, CLONE_NEWNET)
            yield

    def close(self) -> None:
        """Close the descriptor. The network ends with the last process in it."""
        os.close(self.descriptor)


@contextlib.contextmanager
def _coming_back() -> Iterator[None]:
    """Return the calling thread to the network it is in now."""
    before = os.open(_OWN_NETWORK, os.O_RDONLY)
    try:
        yield
    finally:
        call("setns", before, CLONE_NEWNET)
        os.close(before)
