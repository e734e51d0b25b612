"""Which addresses the ranges of IMDSPROXY_CLIENTS include."""

from __future__ import annotations

import pytest

from imdsproxy.protocol.client_ranges import ClientRanges, read_range


@pytest.mark.parametrize(
    ("address", "included"),
    [
        ("10.244.3.0", True),
        ("10.244.3.255", True),
        ("10.244.2.255", False),
        ("10.244.4.0", False),
        ("10.0.0.4", True),
        ("10.0.0.5", False),
        # An IPv6 listener has IPv4 clients.
        ("::ffff:10.244.3.7", True),
        ("::ffff:10.244.4.7", False),
        ("fd00::1:0:0:1", True),
        ("fd01::1", False),
        ("fe80::7%eth0", True),
        # Embedded, but not mapped: an address of somebody else.
        ("::10.244.3.7", False),
        ("64:ff9b::10.244.3.7", False),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("", False),
        ("localhost", False),
        ("10.244.3", False),
        ("010.244.3.7", False),
    ],
)
def test_ranges_include_address(address: str, included: bool) -> None:
    ranges = ClientRanges(("10.244.3.0/24", "10.0.0.4/32", "fd00::/16", "fe80::/10"))
    assert [ranges.include(address), ranges.include(address)] == [included, included]


@pytest.mark.parametrize(
    ("text", "range_"),
    [
        ("10.244.3.0/24", "10.244.3.0/24"),
        ("10.244.3.0/255.255.255.0", "10.244.3.0/24"),
        ("10.0.0.4", "10.0.0.4/32"),
        ("FD00::/16", "fd00::/16"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_range_is_read_in_its_usual_form(text: str, range_: str) -> None:
    assert read_range(text) == range_


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.244.3.7/24", "begins within a range; write 10.244.3.0/24, or the address alone"),
        ("10.244.3.0/33", "is not one"),
        ("10.244.3.*", "is not one"),
        ("pods", "is not one"),
        ("127.0.0.1", "is loopback, which may always ask"),
        ("::1", "is loopback, which may always ask"),
        ("::ffff:10.0.0.0/104", "is a range of IPv4 addresses; write it as one, without ::ffff:"),
    ],
)
def test_what_is_not_a_range_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="^" + why.replace("*", "\\*") + "$"):
        read_range(text)
