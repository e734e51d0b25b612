"""Which addresses and interfaces `imdsproxy address` uses, and which it leaves alone."""

from __future__ import annotations

import pytest

from imdsproxy.cli.node_address import (
    ALIAS,
    DEFAULT_ADDRESS,
    DEFAULT_INTERFACE,
    commands,
    find_own,
    is_own,
    read_address,
    read_interface,
    refuse_taken,
    removal,
)
from imdsproxy.cli.rtnetlink import Held, Link
from imdsproxy.errors import SettingsError

CARD = Link(2, "eth0")
OWN = Link(9, DEFAULT_INTERFACE, ALIAS, "dummy")


@pytest.mark.parametrize("text", [DEFAULT_ADDRESS, "169.254.20.10/32", "169.254.1.0", "169.254.254.255"])
def test_link_local_address_is_used(text: str) -> None:
    assert read_address(text) == text.removesuffix("/32")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("169.254.169.254", "is IMDS itself: with it on this machine, nothing here would reach IMDS"),
        ("169.254.169.254/32", "is IMDS itself"),
        ("10.0.0.4", "is not link-local, so other machines could be routed to it"),
        ("127.0.0.1", "is not link-local"),
        ("169.254.0.7", "is reserved"),
        ("169.254.255.7", "is reserved"),
        ("169.254.1.1", "is the gateway that Azure CNI and Calico give to pods"),
        ("169.254.20.10/24", "is not an IPv4 address"),
        ("fe80::1", "is not an IPv4 address"),
        ("", "is not an IPv4 address"),
    ],
)
def test_other_address_is_refused_with_its_reason_and_a_remedy(text: str, why: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_address(text)
    assert why in str(raised.value)
    assert "choose one from 169.254.1.2 to 169.254.254.255" in str(raised.value)


@pytest.mark.parametrize("text", ["imdsproxy0", "a", "a-b_c.d", "x" * 15])
def test_name_of_an_interface_is_used(text: str) -> None:
    assert read_interface(text) == text


@pytest.mark.parametrize("text", ["", "x" * 16, ".", "..", "a/b", "a b", "-a", "a:b", "a'b"])
def test_other_name_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a name of 1 to 15"):
        read_interface(text)


@pytest.mark.parametrize(
    ("link", "held", "own"),
    [
        (OWN, [], True),
        (OWN, [Held(9, DEFAULT_ADDRESS)], True),
        # A run was killed between making and marking it.
        (Link(9, DEFAULT_INTERFACE, "", "dummy"), [], True),
        (Link(9, DEFAULT_INTERFACE, "", "bridge"), [Held(2, "10.0.0.4")], True),
        (Link(9, DEFAULT_INTERFACE, "", "dummy"), [Held(9, "10.9.0.1")], False),
        (Link(9, DEFAULT_INTERFACE, "another's", "dummy"), [], False),
        (Link(9, DEFAULT_INTERFACE, "", "veth"), [], False),
    ],
)
def test_interface_is_own_by_its_mark(link: Link, held: list[Held], own: bool) -> None:
    assert is_own(link, held) is own
    if own:
        assert find_own(DEFAULT_INTERFACE, [CARD, link], held) == link
    else:
        with pytest.raises(SettingsError, match="this command has not made it"):
            find_own(DEFAULT_INTERFACE, [CARD, link], held)


def test_address_of_another_interface_is_refused_with_its_name() -> None:
    assert find_own(DEFAULT_INTERFACE, [CARD], []) is None
    links = [CARD, OWN, Link(5, "nodelocaldns")]
    refuse_taken(DEFAULT_ADDRESS, None, links, [Held(2, "10.0.0.4")])
    refuse_taken(DEFAULT_ADDRESS, OWN, links, [Held(9, DEFAULT_ADDRESS)])
    for own in (None, OWN):
        with pytest.raises(SettingsError, match="on the interface nodelocaldns; choose another one"):
            refuse_taken(DEFAULT_ADDRESS, own, links, [Held(5, DEFAULT_ADDRESS)])
    with pytest.raises(SettingsError, match="on the interface 77;"):
        refuse_taken(DEFAULT_ADDRESS, None, links, [Held(77, DEFAULT_ADDRESS)])


def test_printed_commands_name_the_address_and_the_interface() -> None:
    assert commands("169.254.20.20", "x") == (
        "ip link add name x type dummy\n"
        f"ip link set x up alias '{ALIAS}'\n"
        "ip address replace 169.254.20.20/32 dev x scope host\n"
    )
    assert removal("x") == "ip link delete x\n"
