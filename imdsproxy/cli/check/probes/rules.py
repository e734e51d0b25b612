"""The rules of the kernel's firewall, and the settings beside them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from imdsproxy.cli.check.ruleset import Ruleset, read_ruleset
from imdsproxy.cli.nftables import ROUTE_LOCALNET
from imdsproxy.cli.redirect import LoadError, run_nft

_ROUTE_LOCALNET = Path("/proc/sys", *ROUTE_LOCALNET.split("."))
_LEGACY = Path("/proc/net/ip_tables_names")


@dataclass(frozen=True)
class Rules:
    """What could be read."""

    ruleset: Ruleset | None = None
    words: str = ""
    """Why the ruleset could not be read."""
    legacy: tuple[str, ...] = ()
    """Tables of iptables-legacy."""
    route_localnet: bool | None = None


def look_at_rules() -> Rules:
    """Read nftables, which needs root, and the rest."""
    legacy: tuple[str, ...] = ()
    with contextlib.suppress(OSError):  # absent without iptables-legacy; readable for root
        legacy = tuple(sorted(_LEGACY.read_text(encoding="ascii").split()))
    on = None
    with contextlib.suppress(OSError):
        on = _ROUTE_LOCALNET.read_text(encoding="ascii").strip() == "1"
    ruleset, words = _ruleset()
    return Rules(ruleset, words, legacy, on)


def _ruleset() -> tuple[Ruleset | None, str]:
    try:
        done = run_nft("--json", "--numeric", "list", "ruleset")
        if done.returncode == 0:
            return read_ruleset(done.stdout), ""
        words = done.stderr.strip().splitlines() or [f"nft ended with status {done.returncode}"]
        return None, words[0]
    except (LoadError, ValueError) as error:
        return None, str(error)
