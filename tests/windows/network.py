"""The network of a Windows: a loopback of its own, which the tests of that Windows share."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.networks import Network

MOST_CLOSED = 100
"""The closed connections that the network keeps for a minute, in TIME_WAIT. It forgets further ones at once."""
SETTING = Path("/proc/sys/net/ipv4/tcp_max_tw_buckets")
"""Where the system has that number, for the network of the thread that reads or writes it."""


def network_of_windows() -> Network | None:
    """Make a network for a Windows, which keeps few closed connections; None if this process may not.

    To find the process of one connection, Wine 8 looks through all open files of all processes, for each connection of
    the network, closed ones too: 0.7 ms each. A benchmark leaves 40,000 of them for a minute, and a proxy that asks who
    its client is would wait for half a minute.
    """
    try:
        network = Network()
    except OSError:
        return None
    with network.inside(), contextlib.suppress(OSError):  # a container may not change settings
        SETTING.write_text(str(MOST_CLOSED), encoding="ascii")
    return network
