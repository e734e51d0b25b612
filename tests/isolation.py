"""Keep the test process, and every process that it starts, away from any network but its own loopback.

On a development machine 169.254.169.254 may be somebody's real metadata service, so no test relies on being
well written. Where the system allows it (Linux; root, or user namespaces) the process moves into a network
namespace that has a loopback and nothing else. Everywhere, `loopback` refuses the connection itself.
"""

from __future__ import annotations

import ctypes
import os
import sys

from tests.kernel import CLONE_NEWNET
from tests.networks import bring_loopback_up

_CLONE_NEWUSER = 0x10000000


def move_to_own_network() -> bool:
    """Move this process into a network namespace of its own; says whether that was allowed."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if user == 0:
        moved = libc.unshare(CLONE_NEWNET) == 0
    else:
        moved = libc.unshare(_CLONE_NEWUSER | CLONE_NEWNET) == 0
        if moved:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
    if moved:
        bring_loopback_up()
    return bool(moved)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123  # /proc wants one write of this very kind
        file.write(text)
