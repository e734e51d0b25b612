"""The turn of a client."""

from __future__ import annotations

import pytest

from imdsproxy.budget.turns import turn_of
from imdsproxy.protocol.peer import UNKNOWN, Peer


@pytest.mark.parametrize(
    ("peer", "turn"),
    [
        (UNKNOWN, ("", "", "")),
        (Peer(address="127.0.0.1"), ("loopback", "", "")),
        (Peer(address="127.83.4.200"), ("loopback", "", "")),
        (Peer(address="::1"), ("loopback", "", "")),
        (Peer(address="::ffff:127.0.0.9"), ("loopback", "", "")),
        (Peer(address="127.0.0.1", proxy="abc"), ("loopback", "", "abc")),
        (Peer(address="10.0.0.7"), ("10.0.0.7", "", "")),
        (Peer(address="::ffff:10.0.0.7"), ("10.0.0.7", "", "")),
        (Peer(address="10.0.0.7", proxy="abc"), ("10.0.0.7", "", "abc")),
        (Peer(address="2001:db8:1:2:3::4"), ("2001:db8:1:2::/64", "2001:db8:1:2:3::4", "")),
        (Peer(address="fe80::1%eth0"), ("fe80::/64", "fe80::1%eth0", "")),
        (Peer(address="a name"), ("a name", "", "")),
        (Peer(user=0, process=12), ("user 0", "12", "")),
        (Peer(user=0, process=12, cgroup=7), ("user 0", "12", "")),
        (Peer(address="127.0.0.1", user=0, cgroup=7, inode=1), ("user 0", "group 7", "")),
        (Peer(user=1000, proxy="abc"), ("user 1000", "", "abc")),
        (Peer(address="127.0.0.1", user=1000, process=12, proxy="abc"), ("user 1000", "12", "abc")),
    ],
)
def test_turn_is_by_user_or_else_by_address(peer: Peer, turn: tuple[str, ...]) -> None:
    assert turn_of(peer) == turn


def test_ports_addresses_children_and_programs_buy_no_turn() -> None:
    """All that a client can multiply shares one outer turn: its user's, or that of loopback."""
    of_a_user = {
        turn_of(Peer(f"127.0.{number}.1", 33, process, proxy=proxy, executable=program, cgroup=number))[0]
        for number, (process, proxy, program) in enumerate([(1, None, "/a"), (2, "x", "/b"), (None, "y", None)])
    }
    of_nobody = {turn_of(Peer(f"127.{number}.0.1", process=number, proxy=str(number)))[0] for number in range(1, 9)}
    assert len(of_a_user) == len(of_nobody) == 1


def test_processes_of_unknown_users_divide_the_turn_of_loopback() -> None:
    one, other = (turn_of(Peer("127.0.0.1", process=number)) for number in (1, 2))
    assert one[0] == other[0] == turn_of(Peer("127.0.0.2"))[0]
    assert one[1] != other[1]
