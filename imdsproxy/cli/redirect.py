"""`imdsproxy redirect`: build the ruleset for this machine, with notes for its user, and load it."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imdsproxy.cli.nftables import ROUTE_LOCALNET, Redirect, removal, rules
from imdsproxy.cli.proc_net_tcp import read_tcp_table
from imdsproxy.errors import SettingsError
from imdsproxy.protocol.messages import IMDS_HOST

if TYPE_CHECKING:
    from imdsproxy.config import Config

UNIT = "imdsproxy.service"
_NAME_IT = 'name the user that the proxy runs as: "imdsproxy redirect --uid NAME-OR-NUMBER"'
_LARGEST_UID = 2**32 - 2
# Names as useradd(8) makes them; none contains a character that could end the quotes around it.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
_ROUTE_LOCALNET = Path("/proc/sys", *ROUTE_LOCALNET.split("."))
_CALLS = f"calls of {IMDS_HOST}:80"
# PATH of an ordinary user or a service may lack the folders of root's programs.
_ROOTS_PROGRAMS = ("/usr/sbin", "/sbin")
_LONGEST_LOADING = 30  # seconds


class LoadError(SettingsError):
    """nft did not run, or did not load the ruleset."""


LEAVE_PODS_OUT = "leave-pods-out"
"""What `node_limits` adds to the options where the pods of a node are not to be redirected."""


class Ruleset(NamedTuple):
    """A ruleset, and what to print with it."""

    text: str
    """Input for `nft -f`."""
    notes: list[str]
    """Notes for the user, one line each."""
    in_force: str
    """The effect once it is loaded, in one line."""


def redirect(config: Config, options: Mapping[str, str]) -> Ruleset:
    """Return the redirect for this machine.

    Args:
        config: `host` and `port` name the proxy's address.
        options: `uid`, `node`, `root` and `exclusive`, where they were given, and LEAVE_PODS_OUT. Without `uid` the
            user of the running unit is used, which is certain; the redirect is then exclusive in any case.

    Raises:
        SettingsError: An option or a setting cannot be used.
    """
    _refuse_windows(unless="uid" in options)
    user = _user(options["uid"]) if "uid" in options else _user_of_the_unit()
    exclusive = "exclusive" in options or "uid" not in options
    host, port = _goal(config.host), _port(config.port)
    wanted = Redirect(
        user, host, port, "node" in options, exclusive, "root" in options, pods_left_out=LEAVE_PODS_OUT in options
    )
    notes = _notes(wanted)
    if "uid" not in options and sys.platform == "linux" and not _listened_at(wanted.host, wanted.port):
        notes.append(
            f"nothing listens at {wanted.host}:{wanted.port}; if the unit sets another host or port, "
            "give it here with --host or --port"
        )
    return Ruleset(rules(wanted), notes, _effect(wanted))


def end_of_redirect() -> Ruleset:
    """Return the ruleset that removes the redirect. It is the same for all settings."""
    return Ruleset(removal(), _notes_on_removal(), f"{_CALLS} go to IMDS itself again")


def load_ruleset(text: str) -> None:
    """Load a ruleset with nft, completely or not at all. Raises LoadError."""
    _refuse_windows()
    done = run_nft("-f", "-", text=text)
    if done.returncode != 0:
        raise LoadError(_why_not(done.stderr, done.returncode))


def run_nft(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run nft with `text` as its input, and return its result. Raises LoadError if it cannot run."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_ROOTS_PROGRAMS))
    nft = shutil.which("nft", path=path)
    if nft is None:
        raise LoadError("nft is not installed on this machine; install nftables (apt-get install nftables)")
    try:
        return subprocess.run(  # noqa: S603  # a fixed command
            [nft, *arguments], input=text, capture_output=True, text=True, check=False, timeout=_LONGEST_LOADING
        )
    except OSError as error:
        raise LoadError(f"{nft} cannot be run: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise LoadError(
            f'{nft} did not end within {_LONGEST_LOADING} seconds; "nft list ruleset" shows which rules are loaded now'
        ) from None


def _refuse_windows(*, unless: bool = False) -> None:
    """Raise LoadError on Windows, which has no such redirect, `unless` the ruleset is for another machine."""
    if sys.platform == "win32" and not unless:
        raise LoadError(
            f"Windows cannot redirect {_CALLS}: nftables is for Linux, and netsh's portproxy accepts only connections "
            "to this machine's own addresses; configure each client with http://127.0.0.1:8254 (docs/service.md), "
            "or print the ruleset for a Linux machine: --uid USER"
        )


def _why_not(message: str, status: int) -> str:
    if "Operation not permitted" in message:
        return "changing nftables needs root or CAP_NET_ADMIN"
    # The first line of nft's error has the place and the reason; the lines below repeat the rule.
    what = (message.strip().splitlines() or [f"it ended with status {status} and no reason"])[0]
    return f"nft does not accept the ruleset: {what.rpartition('Error: ')[2]}"


def _effect(wanted: Redirect) -> str:
    calls = f"{_CALLS}, those of this machine's pods too," if wanted.pods else _CALLS
    root = " and of root's programs" if wanted.root_exempt else ""
    return f"{calls} now go to {wanted.host}:{wanted.port}, except those of user {wanted.user}{root}"


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
        raise SettingsError(f"systemd is not running here, so the user of {UNIT} is unknown; {_NAME_IT}") from None
    pid = shown.stdout.strip()
    if not pid.isdigit() or pid == "0":
        raise SettingsError(f"{UNIT} is not running here; start it, or {_NAME_IT}")
    try:
        return str(Path("/proc", pid).stat().st_uid)
    except OSError:
        raise SettingsError(f"{UNIT} has just ended; start it, or {_NAME_IT}") from None


def _goal(host: str) -> str:
    """Return the address of this machine at which a proxy listening on `host` is reached."""
    try:
        # As the server resolves it, so that both mean the same address.
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0]
        address = ipaddress.IPv4Address(found)
    except OSError as error:
        raise SettingsError(f"IMDSPROXY_HOST={host} cannot be listened on: {error.strerror or error}") from None
    except ValueError:
        raise SettingsError(
            f"IMDSPROXY_HOST={host} cannot be redirected to: IMDS has an IPv4 address, so the proxy must listen on one"
        ) from None
    if address.is_multicast or str(address) == IMDS_HOST:
        raise SettingsError(f"IMDSPROXY_HOST={host} is not an address of this machine that the proxy could listen on")
    return "127.0.0.1" if address.is_unspecified else str(address)


def _listened_at(host: str, port: int) -> bool:
    """Return whether a TCP socket of this machine listens there."""
    text = Path("/proc/net/tcp").read_text(encoding="ascii")
    return any(row.listens_at(host, port) for row in read_tcp_table(text, sys.byteorder))


def _port(port: int) -> int:
    if port == 0:
        raise SettingsError("IMDSPROXY_PORT=0 is another port at each start; set a fixed port for the redirect")
    return port


def _notes(wanted: Redirect) -> list[str]:
    notes = []
    if wanted.user in {"0", "root"}:
        notes.append("requests of root's processes are not redirected; run the proxy as a user of its own")
    if wanted.pods:
        notes.append(
            "rules that block IMDS for pods (a NetworkPolicy, a forward chain) do not see redirected requests; "
            "IMDSPROXY_DENY=/metadata/identity makes this proxy refuse tokens to all its clients"
        )
    if wanted.needs_route_localnet and not _on(_ROUTE_LOCALNET):
        notes.append(f"pods get no answer until this is set: sysctl -w {ROUTE_LOCALNET}=1")
    return notes


def _notes_on_removal() -> list[str]:
    if sys.platform == "linux" and _on(_ROUTE_LOCALNET):
        return [
            (
                f"the removed table also protected loopback, and {ROUTE_LOCALNET} is 1: "
                "set it to 0 unless another program, such as kube-proxy, needs it"
            )
        ]
    return []


def _on(setting: Path) -> bool:
    try:
        return setting.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return sys.platform != "linux"  # the ruleset is for another machine
