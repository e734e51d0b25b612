"""`imdsproxy redirect`: the ruleset for this machine's proxy, and what else a person has to know of it."""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imdsproxy.messages import IMDS_HOST
from imdsproxy.ruleset import ROUTE_LOCALNET, Redirect, removal, rules
from imdsproxy.settings_values import SettingsError

if TYPE_CHECKING:
    from imdsproxy.settings import Settings

UNIT = "imdsproxy.service"
_NAME_IT = 'name the user that the proxy runs as: "imdsproxy redirect --uid NAME-OR-NUMBER"'
_LARGEST_UID = 2**32 - 2
# Names as useradd(8) makes them; nothing in one can end the quotes that it stands in.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
_ROUTE_LOCALNET = Path("/proc/sys", *ROUTE_LOCALNET.split("."))


def redirect(settings: Settings, options: Mapping[str, str]) -> tuple[str, list[str]]:
    """Give the ruleset and notes for people. `options` are `uid`, `node` and `exclusive`, where they were given.

    The user of the running unit is certain, so then it is exclusive in any case. SettingsError says which of them, or
    which setting, cannot be used and what to do.
    """
    user = _user(options["uid"]) if "uid" in options else _user_of_the_unit()
    exclusive = "exclusive" in options or "uid" not in options
    wanted = Redirect(user, _goal(settings.host), _port(settings.port), "node" in options, exclusive)
    notes = _notes(wanted)
    if "uid" not in options and sys.platform == "linux" and not _listened_at(wanted.host, wanted.port):
        notes.append(
            f"nothing listens at {wanted.host}:{wanted.port}; if the unit has a host or port of its own, name it here"
        )
    return rules(wanted), notes


def end_of_redirect() -> tuple[str, list[str]]:
    """Give the ruleset that takes the other away, whatever the settings are, and notes for people."""
    return removal(), _notes_on_removal()


def _user(given: str) -> str:
    digits = given.lstrip("0") or "0"
    if given.isascii() and given.isdigit() and len(digits) <= len(str(_LARGEST_UID)) and int(digits) <= _LARGEST_UID:
        return digits
    if _NAME.fullmatch(given):
        return given
    raise SettingsError(f"--uid={given[:80]!a} is neither a user's number nor a user's name")


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
    try:
        # As the server does it, so that both mean the same by a name.
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0]
        address = ipaddress.IPv4Address(found)
    except OSError as error:
        raise SettingsError(f"IMDSPROXY_HOST={host} cannot be listened at: {error.strerror or error}") from None
    except ValueError:
        raise SettingsError(
            f"IMDSPROXY_HOST={host} cannot be redirected to: IMDS has an IPv4 address, so the proxy must listen at one"
        ) from None
    if address.is_multicast or str(address) == IMDS_HOST:
        raise SettingsError(f"IMDSPROXY_HOST={host} is no address of this machine that the proxy could listen at")
    return "127.0.0.1" if address.is_unspecified else str(address)


def _listened_at(host: str, port: int) -> bool:
    """Whether a TCP socket of this machine listens there (proc(5), /proc/net/tcp)."""
    wanted = {f"{int.from_bytes(socket.inet_aton(text), sys.byteorder):08X}:{port:04X}" for text in (host, "0.0.0.0")}  # noqa: S104
    listed = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(local in wanted and state == "0A" for _, local, _, state, *_ in map(str.split, listed))


def _port(port: int) -> int:
    if port == 0:
        raise SettingsError("IMDSPROXY_PORT=0 is another port at each start; a redirect needs one that stays")
    return port


def _notes(wanted: Redirect) -> list[str]:
    notes = []
    if wanted.user in {"0", "root"}:
        notes.append("every process of root goes to IMDS directly; let the proxy run as a user of its own")
    if wanted.node:
        notes.append(
            "what bans pods from IMDS (a NetworkPolicy, a rule in a forward chain) does not see redirected calls; "
            "IMDSPROXY_DENY=/metadata/identity on this proxy keeps tokens from all its clients"
        )
    if wanted.needs_route_localnet and not _on(_ROUTE_LOCALNET):
        notes.append(f"pods get no answer until the kernel allows it: sysctl -w {ROUTE_LOCALNET}=1")
    return notes


def _notes_on_removal() -> list[str]:
    if sys.platform == "linux" and _on(_ROUTE_LOCALNET):
        return [
            (
                f"with the table goes its guard of loopback, and {ROUTE_LOCALNET} is 1: "
                "set it to 0 unless something else, such as kube-proxy, needs it"
            )
        ]
    return []


def _on(setting: Path) -> bool:
    try:
        return setting.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return sys.platform != "linux"  # printed here for another machine
