"""Messages of rtnetlink: the requests byte by byte, the answers whatever their bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.cli import rtnetlink
from imdsproxy.cli.rtnetlink import Answers, Held, Link


def message(kind: int, body: bytes, sequence: int = 7) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def link(number: int, *attributes: bytes) -> bytes:
    return message(16, struct.pack("=BxHiII", 0, 1, number, 0, 0) + b"".join(attributes))


def address(number: int, *attributes: bytes) -> bytes:
    return message(20, struct.pack("=BBBBI", 2, 32, 0, 0, number) + b"".join(attributes))


def read(*data: bytes) -> Answers:
    answers = Answers(7)
    for each in data:
        answers.read(each)
    return answers


def test_interfaces_and_addresses_are_read_from_several_messages() -> None:
    card = link(2, attribute(3, b"eth0\0"))
    kind = attribute(18 | 0x8000, attribute(1, b"dummy\0"))
    own = link(9, attribute(3, b"imdsproxy0\0"), attribute(20, b"ours\0"), kind)
    answers = read(card + own, message(3, struct.pack("=i", 0)))
    assert answers.links == [Link(2, "eth0"), Link(9, "imdsproxy0", "ours", "dummy")]
    assert answers.error == 0

    both = address(2, attribute(1, bytes([10, 0, 0, 9])), attribute(2, bytes([10, 0, 0, 4])))
    far = address(3, attribute(1, bytes([10, 0, 0, 5])))
    assert read(both, far, address(4)).held == [Held(2, "10.0.0.4"), Held(3, "10.0.0.5")]
    assert read(address(5, attribute(2, b"\0" * 16))).held == []


def test_error_is_read_and_other_requests_are_left_out() -> None:
    assert read(message(2, struct.pack("=i", -1))).error == 1
    assert read(message(2, struct.pack("=i", 0))).error == 0
    other = read(message(2, struct.pack("=i", -1), sequence=8), message(24, b""))
    assert (other.error, other.links, other.held) == (None, [], [])


@pytest.mark.parametrize("cut", [1, 15, 17])
def test_cut_message_is_left_out(cut: int) -> None:
    assert read(link(2, attribute(3, b"eth0\0"))[:cut]).links == []


def test_cut_attribute_is_left_out() -> None:
    assert read(link(2, attribute(3, b"eth0\0"), struct.pack("=HH", 90, 20))).links == [Link(2, "eth0")]
    assert read(link(2, attribute(3, b"eth0\0"), struct.pack("=HH", 3, 20))).links == [Link(2, "eth0")]


@given(st.binary(max_size=200))
def test_any_attributes_are_read_without_an_error(data: bytes) -> None:
    read(message(16, struct.pack("=BxHiII", 0, 1, 2, 0, 0) + data))
    read(message(20, struct.pack("=BBBBI", 2, 32, 0, 0, 2) + data))


def test_requests_have_the_kernels_form() -> None:
    assert rtnetlink.ask_links(7) == struct.pack("=IHHII", 32, 18, 0x301, 7, 0) + b"\0" * 16
    assert rtnetlink.ask_addresses(7) == struct.pack("=IHHIIBBBBI", 24, 22, 0x301, 7, 0, 2, 0, 0, 0, 0)
    made = rtnetlink.make_link(7, "a", "dummy")
    assert made == struct.pack("=IHHII", 56, 16, 0x605, 7, 0) + b"\0" * 16 + attribute(3, b"a\0") + attribute(
        18, attribute(1, b"dummy\0")
    )
    raised = rtnetlink.raise_link(7, 9, "x")
    assert raised == struct.pack("=IHHIIBxHiII", 40, 16, 5, 7, 0, 0, 0, 9, 1, 1) + attribute(20, b"x\0")
    assert rtnetlink.remove_link(7, 9) == struct.pack("=IHHIIBxHiII", 32, 17, 5, 7, 0, 0, 0, 9, 0, 0)
    packed = bytes([169, 254, 20, 10])
    added = rtnetlink.add_address(7, 9, "169.254.20.10")
    assert added == struct.pack("=IHHIIBBBBI", 40, 20, 0x505, 7, 0, 2, 32, 0, 254, 9) + attribute(
        2, packed
    ) + attribute(1, packed)
