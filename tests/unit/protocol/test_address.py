"""Which listeners an upstream reaches: those that the proxy must not have itself."""

from __future__ import annotations

import pytest

from imdsproxy.protocol.address import Address


@pytest.mark.parametrize(
    ("host", "listener", "reached"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("::1", "127.0.0.1", False),
        ("::1", "::1", True),
        ("0:0:0:0:0:0:0:1", "::1", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("fe80::1", "fe80::1%eth0", True),
        ("10.0.0.4", "10.0.0.4", True),
        # localhost is either family's loopback, as is a connection to the unspecified address.
        ("localhost", "127.0.0.1", True),
        ("localhost", "::1", True),
        ("localhost", "localhost", True),
        ("::1", "localhost", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "::1", False),
        ("::", "::1", True),
        ("::", "127.0.0.1", False),
        # A listener on 0.0.0.0 gets what is sent to any loopback address of IPv4; one on :: what is sent to any.
        ("127.0.0.9", "0.0.0.0", True),
        ("localhost", "0.0.0.0", True),
        ("::1", "0.0.0.0", False),
        ("::1", "::", True),
        ("127.0.0.1", "::", True),
        ("10.0.0.4", "0.0.0.0", False),
        ("169.254.169.254", "0.0.0.0", False),
        # Names are compared as they are.
        ("proxy.example", "proxy.example", True),
        ("imds.example", "proxy.example", False),
        ("proxy.example", "0.0.0.0", False),
        ("proxy.example", "127.0.0.1", False),
    ],
)
def test_upstream_reaches_the_listeners_of_its_address(host: str, listener: str, reached: bool) -> None:
    assert Address(host, 8254).reaches(listener, 8254) is reached
    assert not Address(host, 8254).reaches(listener, 8255)


def test_unix_socket_reaches_no_tcp_listener() -> None:
    assert not Address("127.0.0.1", 8254, unix="/run/imds.sock").reaches("127.0.0.1", 8254)
