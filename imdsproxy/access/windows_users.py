"""The user database of Windows: SIDs by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

assert sys.platform == "win32"  # noqa: S101  # imported there only; this tells the type checker

from imdsproxy.peers.windows_sockets import sid_of  # noqa: E402  # behind the line above

_SID = re.compile(r"S-1-[0-9-]+")


def sids_of(names: Iterable[str]) -> dict[str, int | str]:
    """Return the SIDs of these users. A SID stands for itself. Names that Windows does not know are left out."""
    found: dict[str, int | str] = {}
    for name in names:
        sid = name if _SID.fullmatch(name) else sid_of(name)
        if sid is not None:
            found[name] = sid
    return found
