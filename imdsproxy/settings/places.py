"""Read the settings that name a place: hosts, sockets, files, the upstream. See `parsers`."""

from __future__ import annotations

import ipaddress
import re
import sys

from imdsproxy.protocol.address import Address
from imdsproxy.protocol.host import IPAddress, unmapped
from imdsproxy.settings.parsers import items_of, shown, text_of

# Variables, so that tests on one system can test the rules for the others.
_WINDOWS = sys.platform == "win32"
_LINUX = sys.platform == "linux"
_LONGEST_SOCKET_PATH = 107  # bytes: what sockaddr_un holds on Linux, less the closing zero

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_NODE = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
# Resolvers read "127.1" and "0x7f000001" as addresses, so a name must not end in a number.
_NUMBER_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_AUTHORITY = re.compile(r"(?:\[(?P<six>[^\]]*:[^\]%]*)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")


def read_host(value: object) -> str:
    """Read an address or host name to listen on; an IPv6 address may stand in brackets."""
    text = text_of(value).lower()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if _address(text) is None and not _is_host_name(text):
        raise ValueError
    return text


def read_host_names(value: object) -> tuple[str, ...]:
    """Read host names; addresses are refused, because they need no listing."""
    names = tuple(item.lower() for item in items_of(value))
    for name in names:
        if _address(name.strip("[]")) is not None:
            raise ValueError(f'"{shown(name)}" is an IP address, and those are always accepted')
        if not _is_host_name(name):
            raise ValueError(f'"{shown(name)}" is not one')
    return tuple(dict.fromkeys(names))


def read_node(value: object) -> str | None:
    """Read the name of a Kubernetes node, which is a DNS subdomain (RFC 1123) in lower case; None where it is empty."""
    text = text_of(value)
    if text and not _NODE.fullmatch(text):
        raise ValueError
    return text or None


def read_socket_path(value: object) -> str | None:
    """Read the absolute path of a Unix socket to listen on; None where it is empty."""
    text = text_of(value)
    if not text:
        return None
    _refuse_scheme(text)
    # While the socket is created, its name is a little longer.
    return _socket_path(text, _LONGEST_SOCKET_PATH - len(".1234"))


def read_budget_file(value: object) -> str | None:
    """Read the absolute path of the file that holds a shared budget; None where it is empty."""
    return _linux_file(
        value,
        "a budget is shared on Linux only, because only there the proxy finds the file locks, the clock of the "
        "whole machine and the boot id that this needs",
    )


def read_handover_file(value: object) -> str | None:
    """Read the absolute path of the file that keeps entries over a restart; None where it is empty."""
    return _linux_file(
        value,
        "entries are kept over a restart on Linux only, because only there the proxy finds the boot id and the clock "
        "of the whole machine that state their age",
    )


def _linux_file(value: object, elsewhere: str) -> str | None:
    """Read the absolute path of a file; None where it is empty. On other systems it is refused with `elsewhere`."""
    text = text_of(value)
    if not text:
        return None
    _refuse_scheme(text)
    if not _LINUX:
        raise ValueError(elsewhere)
    if len(text) < 2 or not text.startswith("/") or text.endswith("/") or not text.isprintable():
        raise ValueError
    return text


def _refuse_scheme(text: str) -> None:
    if text.lower().startswith("unix:"):
        raise ValueError("write the path alone, without unix:")


def read_upstream(value: object) -> str:
    """Return the text of an upstream that `parse_upstream` understands."""
    text = text_of(value)
    parse_upstream(text)
    return text


def parse_upstream(text: str) -> Address:
    """Parse `http://host[:port]` or `unix:/path`; the default port is 80. Raises ValueError."""
    scheme, _, rest = text.partition(":")
    match scheme.lower():
        case "unix":
            return Address("localhost", unix=_socket_path(rest))
        case "https":
            raise ValueError("IMDS speaks plain HTTP only")
        case "http" if rest.startswith("//"):
            return _http(rest[2:].removesuffix("/"))
        case _:
            raise ValueError


def _address(text: str) -> IPAddress | None:
    try:
        return unmapped(ipaddress.ip_address(text))
    except ValueError:
        return None


def _is_host_name(text: str) -> bool:
    return bool(_HOST_NAME.fullmatch(text)) and not _NUMBER_LABEL.fullmatch(text.rpartition(".")[2])


def _http(authority: str) -> Address:
    if "@" in authority:
        raise ValueError("it must have no user name and no password")
    if any(mark in authority for mark in "/?#"):
        raise ValueError("it must have no path, query or fragment, because each request has its own")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError
    host = (match["host"] or match["six"]).lower()
    if not (_address(host) if match["six"] else _address(host) or _is_host_name(host)):
        raise ValueError(f'"{shown(host)}" is not a host')
    port = int(match["port"] or "80")
    if not 0 < port <= 65535:
        raise ValueError("a port is from 1 to 65535")
    return Address(host, port)


def _socket_path(text: str, longest: int = _LONGEST_SOCKET_PATH) -> str:
    if _WINDOWS:
        raise ValueError("Python does not support Unix sockets on Windows")
    path = re.sub(r"\A/+", "/", text)
    if len(path) < 2 or not path.startswith("/") or not path.isprintable():
        raise ValueError
    if len(path.encode()) > longest:
        raise ValueError(f"the path of a Unix socket has at most {longest} bytes")
    return path
