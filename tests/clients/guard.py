"""Where clients may run: they are foreign code, and know an address that may be a real metadata service."""

from __future__ import annotations

import os
from pathlib import Path


def network() -> str:
    """Return the name of the network namespace that the calling thread is in."""
    return str(Path("/proc/thread-self/ns/net").readlink())


def only_in_a_namespace() -> None:
    """End this process unless its network is the one that MADE_NETWORK names: a test made it, and said so."""
    if os.environ.get("MADE_NETWORK") != network():
        raise SystemExit("this client has 169.254.169.254 hard-coded: it runs in a network namespace of a test's only")
