"""The kernel's messages about one socket."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from imdsproxy.peers.sock_diag import LIVE_STATES, MESSAGE, End, NoOwner, Owner, ask, read_answer, unmapped

CLIENT = End(ip_address("127.0.0.1").packed, 40000)
IMDS = End(ip_address("169.254.169.254").packed, 80)
CLIENT6 = End(ip_address("::1").packed, 40000)
PROXY6 = End(ip_address("::1").packed, 8254)
ESTABLISHED, TIME_WAIT, CLOSED, LISTENING = 1, 6, 7, 10


def answer(
    *,
    local: End = CLIENT,
    remote: End = IMDS,
    state: int = ESTABLISHED,
    user: int = 33,
    inode: int = 4711,
    sequence: int = 1,
    mapped: bool = False,
    attributes: bytes = b"",
) -> bytes:
    family = 10 if mapped or len(local.address) == 16 else 2
    before = b"\0" * 10 + b"\xff\xff" if mapped else b""
    ends = b"".join((before + end.address).ljust(16, b"\0") for end in (local, remote))
    body = struct.pack("=BBBB", family, state, 0, 0) + struct.pack("!HH", local.port, remote.port) + ends
    body += struct.pack("=I8sIIIII", 0, b"\0" * 8, 0, 0, 0, user, inode) + attributes
    return struct.pack("=IHHII", 16 + len(body), 20, 0, sequence, 0) + body


def error(code: int) -> bytes:
    return struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -code) + b"\0" * 16


def test_owner_is_read() -> None:
    assert read_answer(answer(), CLIENT, IMDS, 1) == Owner(33, 4711)
    assert read_answer(answer(mapped=True), CLIENT, IMDS, 1) == Owner(33, 4711)
    assert read_answer(answer(local=CLIENT6, remote=PROXY6, user=0), CLIENT6, PROXY6, 1) == Owner(0, 4711)


@pytest.mark.parametrize("state", range(13))
@pytest.mark.parametrize("inode", [0, 4711])
def test_socket_that_is_not_live_or_has_no_inode_has_no_owner(state: int, inode: int) -> None:
    found = read_answer(answer(state=state, user=0, inode=inode), CLIENT, IMDS, 1)
    if state in LIVE_STATES and inode:
        assert found == Owner(0, 4711)
    else:
        assert found == NoOwner("the client has closed its socket")


@pytest.mark.parametrize(
    "other",
    [
        answer(remote=End(b"\0" * 4, 0), state=LISTENING),
        answer(local=CLIENT._replace(port=40001)),
        answer(remote=IMDS._replace(port=81)),
        answer(local=End(ip_address("127.0.0.2").packed, 40000)),
    ],
)
def test_socket_with_other_ends_is_not_the_clients(other: bytes) -> None:
    found = read_answer(other, CLIENT, IMDS, 1)
    assert isinstance(found, NoOwner)
    assert found.missing


@pytest.mark.parametrize(
    ("message", "words", "missing"),
    [
        (b"", "too short", False),
        (error(2), "no socket", True),
        (error(1), "error 1", False),
        (answer()[:-1], "not understood", False),
        (answer()[:4] + struct.pack("=H", 3) + answer()[6:], "not understood", False),
        (struct.pack("=IHHIII", 20, 3, 0, 1, 0, 0), "not understood", False),
    ],
)
def test_answer_without_a_socket_says_why(message: bytes, words: str, missing: bool) -> None:
    found = read_answer(message, CLIENT, IMDS, 1)
    assert isinstance(found, NoOwner)
    assert words in found.why
    assert found.missing is missing


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust(len(value) + 3 & ~3, b"\0")


@pytest.mark.parametrize(
    ("attributes", "cgroup"),
    [
        (b"", None),
        (attribute(8, b"\0") + attribute(15, b"\0" * 4) + attribute(21, struct.pack("=Q", 77)), 77),
        (attribute(8, b"\0"), None),
        (attribute(21, b"\0" * 4), None),
        (attribute(21, struct.pack("=Q", 77))[:-1], None),
        (struct.pack("=HH", 0, 0) + attribute(21, struct.pack("=Q", 77)), 77),
        (b"\0" * 3, None),
    ],
)
def test_control_group_is_read_where_the_kernel_sends_it(attributes: bytes, cgroup: int | None) -> None:
    assert read_answer(answer(attributes=attributes), CLIENT, IMDS, 1) == Owner(33, 4711, cgroup)


def test_answer_to_an_earlier_request_is_passed_over() -> None:
    assert read_answer(answer(sequence=1), CLIENT, IMDS, 2) is None
    assert read_answer(error(2), CLIENT, IMDS, 2) is None


@pytest.mark.parametrize(("local", "remote", "family"), [(CLIENT, IMDS, 2), (CLIENT6, PROXY6, 10)])
def test_request_names_both_ends_as_the_client_has_them(local: End, remote: End, family: int) -> None:
    message = ask(local, remote, 7, interface=1)
    assert len(message) == MESSAGE == 72
    assert struct.unpack_from("=IHHII", message) == (72, 20, 1, 7, 0)
    assert struct.unpack_from("=BB", message, 16) == (family, 6)
    assert struct.unpack_from("!HH", message, 24) == (local.port, remote.port)
    size = len(local.address)
    assert message[28 : 28 + size] == local.address
    assert message[44 : 44 + size] == remote.address
    assert struct.unpack_from("=I", message, 60) == (1,)


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.0.0.7", "10.0.0.7"), ("::ffff:10.0.0.7", "10.0.0.7"), ("::1", "::1"), ("::", "::")],
)
def test_mapped_address_is_the_ipv4_address(text: str, address: str) -> None:
    assert unmapped(ip_address(text).packed) == ip_address(address).packed


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("10.0.0.7", False), ("::1", True), ("7f00::1", False), ("::", False)],
)
def test_loopback_is_known(text: str, loopback: bool) -> None:
    assert End(ip_address(text).packed, 1).is_loopback is loopback
