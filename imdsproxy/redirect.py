"""`imdsproxy redirect`: the ruleset for this machine's proxy, and what else a person has to know of it."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imdsproxy.ruleset import Redirect, removal, rules
from imdsproxy.settings_values import SettingsError

if TYPE_CHECKING:
    from imdsproxy.settings import Settings

UNIT = "imdsproxy.service"
_NAME_IT = 'name the user that the proxy runs as: "imdsproxy redirect --uid NAME-OR-NUMBER"'
_LARGEST_UID = 2**32 - 2
# Names as useradd(8) makes them; nothing in one can end the quotes that it stands in.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
_ROUTE_LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")


def redirect(settings: Settings, options: Mapping[str, str]) -> tuple[str, list[str]]:
    """Give the ruleset and notes for people. `options` are `uid`, `node` and `remove`, where they were given.

    SettingsError says which of them, or which setting, cannot be used and what to do.
    """
    if "remove" in options:
        return removal(), _notes_on_removal()
    user = _user(options["uid"]) if "uid" in options else _user_of_the_unit()
    wanted = Redirect(user, _goal(settings.host), _port(settings.port), node="node" in options)
    return rules(wanted), _notes(wanted)


def _user(given: str) -> str:
    if given.isascii() and given.isdigit() and int(given) <= _LARGEST_UID:
        return str(int(given))
    if _NAME.fullmatch(given):
        return given
    raise SettingsError(f"--uid={given!a} is neither a user's number nor a user's name")


def _user_of_the_unit() -> str:
    command = ["systemctl", "show", "--property=MainPID", "--value", UNIT]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603  # fixed
    except (OSError, subprocess.TimeoutExpired):
        raise SettingsError(f"this machine has no systemd that could tell of {UNIT}; {_NAME_IT}") from None
    pid = shown.stdout.strip()
    if not pid.isdigit() or pid == "0":
        raise SettingsError(f"{UNIT} is not running here; start it, or {_NAME_IT}")
    try:
        return str(Path("/proc", pid).stat().st_uid)
    except OSError:
        raise SettingsError(f"{UNIT} has just ended; start it, or {_NAME_IT}") from None


def _goal(host: str) -> str:
    """Give the address of this machine at which a proxy listening at `host` is reached."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise SettingsError(
            f"IMDSPROXY_HOST={host} cannot be redirected to: IMDS has an IPv4 address, so the proxy must listen at one"
        ) from None
    return "127.0.0.1" if address.is_unspecified else str(address)


def _port(port: int) -> int:
    if port == 0:
        raise SettingsError("IMDSPROXY_PORT=0 is another port at each start; a redirect needs one that stays")
    return port


def _notes(wanted: Redirect) -> list[str]:
    notes = []
    if wanted.user in {"0", "root"}:
        notes.append("every process of root goes to IMDS directly; let the proxy run as a user of its own")
    if wanted.needs_route_localnet and not _on(_ROUTE_LOCALNET):
        notes.append("pods get no answer until the kernel allows it: sysctl -w net.ipv4.conf.all.route_localnet=1")
    return notes


def _notes_on_removal() -> list[str]:
    if sys.platform == "linux" and _on(_ROUTE_LOCALNET):
        return [
            (
                "with the table goes its guard of loopback, and net.ipv4.conf.all.route_localnet is 1: "
                "set it to 0 unless something else, such as kube-proxy, needs it"
            )
        ]
    return []


def _on(setting: Path) -> bool:
    try:
        return setting.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return sys.platform != "linux"  # printed here for another machine
