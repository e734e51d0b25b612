"""The link-local address of a node: which ones can be used, and the commands of ip(8) that make it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from imdsproxy.cli.rtnetlink import Held, Link
from imdsproxy.errors import SettingsError
from imdsproxy.protocol.messages import IMDS_HOST

DEFAULT_ADDRESS = "169.254.20.10"
DEFAULT_INTERFACE = "imdsproxy0"
ALIAS = "imdsproxy: address of the proxy of this node"
"""Marks an interface as made by this command, so that no other one is ever changed or removed."""
KINDS = ("dummy", "bridge")
"""The kinds of interface, the preferred one first. A bridge without ports serves where the kernel has no dummies."""

_RANGE = ipaddress.IPv4Network("169.254.0.0/16")
# RFC 3927 section 2.1 reserves the first and the last 256 addresses.
_RESERVED = (ipaddress.IPv4Network("169.254.0.0/24"), ipaddress.IPv4Network("169.254.255.0/24"))
# A name that the kernel accepts (dev_valid_name) and a shell needs no quotes for.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_GATEWAY = "169.254.1.1"


def read_address(text: str) -> str:
    """Return an address that a node's proxy can have. Raise SettingsError with the reason if it cannot."""
    try:
        address = ipaddress.IPv4Address(text.removesuffix("/32"))
    except ValueError:
        raise SettingsError(f"--address={text[:80]!a} is not an IPv4 address; {_remedy()}") from None
    if str(address) == IMDS_HOST:
        raise SettingsError(
            f"--address={address} is IMDS itself: with it on this machine, nothing here would reach IMDS, "
            f"the proxy included; {_remedy()}"
        )
    if address not in _RANGE:
        raise SettingsError(
            f"--address={address} is not link-local, so other machines could be routed to it; {_remedy()}"
        )
    if any(address in each for each in _RESERVED):
        raise SettingsError(f"--address={address} is reserved (RFC 3927, section 2.1); {_remedy()}")
    if str(address) == _GATEWAY:
        raise SettingsError(f"--address={address} is the gateway that Azure CNI and Calico give to pods; {_remedy()}")
    return str(address)


def read_interface(text: str) -> str:
    """Return the name of an interface. Raise SettingsError if it cannot be one."""
    if not _NAME.fullmatch(text) or not text.strip("."):
        raise SettingsError(f"--interface={text[:80]!a} is not a name of 1 to 15 letters, digits, dots and dashes")
    return text


def is_own(link: Link, held: Iterable[Held]) -> bool:
    """Return whether this command has made an interface.

    Between its making and its marking, a run that is killed leaves one without a mark and without an address.
    """
    unmarked = not link.alias and link.kind in KINDS and all(each.link != link.number for each in held)
    return link.alias == ALIAS or unmarked


def find_own(name: str, links: Iterable[Link], held: Iterable[Held]) -> Link | None:
    """Return the interface that this command has made under this name, or None if nothing has the name.

    Raises:
        SettingsError: Something else has the name.
    """
    own = next((link for link in links if link.name == name), None)
    if own is not None and not is_own(own, held):
        raise SettingsError(
            f"the interface {name} exists, and this command has not made it; choose another name with --interface"
        )
    return own


def refuse_taken(address: str, own: Link | None, links: Iterable[Link], held: Iterable[Held]) -> None:
    """Raise SettingsError if another interface than `own` has the address."""
    names = {link.number: link.name for link in links}
    for number, other in held:
        if other == address and (own is None or number != own.number):
            holder = names.get(number, str(number))
            raise SettingsError(
                f"{address} is an address of this machine already, on the interface {holder}; choose another one with "
                "--address, such as 169.254.20.20 (NodeLocal DNSCache has 169.254.20.10 by default)"
            )


def commands(address: str, name: str) -> str:
    """Return the commands of ip(8) that do the same."""
    return (
        f"ip link add name {name} type {KINDS[0]}\n"
        f"ip link set {name} up alias '{ALIAS}'\n"
        f"ip address replace {address}/32 dev {name} scope host\n"
    )


def removal(name: str) -> str:
    """Return the command of ip(8) that removes the interface and its address."""
    return f"ip link delete {name}\n"


def _remedy() -> str:
    return f"choose one from 169.254.1.2 to 169.254.254.255, such as {DEFAULT_ADDRESS}"
