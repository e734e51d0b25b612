"""What to change if a redirect sends the proxy's own requests back to it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from imdsproxy.protocol.messages import IMDS_HOST

_UID_MAP = Path("/proc/self/uid_map")


def missing_exemption(user: int | None) -> str:
    """Return which rule of the redirect is missing.

    Args:
        user: The proxy's user as nft sees it; None if it is not known, as in a user namespace.
    """
    number = "USER" if user is None else str(user)
    return (
        f"the redirect of {IMDS_HOST}:80 does not exempt the user that this proxy runs as: "
        f"its rule lacks `meta skuid != {number}`; `imdsproxy redirect --load --uid {number}` loads it with the "
        "exemption (on a node with --node)"
    )


def own_user() -> int | None:
    """Return this process's user as nft sees it, or None in a user namespace with numbers of its own."""
    if sys.platform == "win32":
        return None
    try:
        numbered = _UID_MAP.read_text(encoding="ascii").split()
    except OSError:
        return os.getuid()  # no Linux, so no such namespaces
    return os.getuid() if numbered[:2] == ["0", "0"] else None
