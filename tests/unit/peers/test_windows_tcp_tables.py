"""Windows' tables of connections, as bytes."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from imdsproxy.peers.sock_diag import End
from imdsproxy.peers.windows_tcp_tables import LIVE_STATES, process_of

CLIENT, PROXY = End(ip_address("127.0.0.1").packed, 50_000), End(ip_address("127.0.0.1").packed, 8254)
CLIENT6, PROXY6 = End(ip_address("::1").packed, 50_000), End(ip_address("::1").packed, 8254)
ESTABLISHED = 5


def row(local: End = CLIENT, remote: End = PROXY, state: int = ESTABLISHED, process: int = 4711) -> bytes:
    """Return a row as Windows writes it; two bytes of each port's number have no meaning."""
    ports = [end.port.to_bytes(2, "big") + b"\xee\xee" for end in (local, remote)]
    if len(local.address) == 4:
        return struct.pack("<I4s4s4s4sI", state, local.address, ports[0], remote.address, ports[1], process)
    scope = b"\1\0\0\0"
    parts = [local.address, scope, ports[0], remote.address, scope, ports[1]]
    return b"".join(parts) + struct.pack("<II", state, process)


def table(*rows: bytes, count: int | None = None) -> bytes:
    return struct.pack("<I", len(rows) if count is None else count) + b"".join(rows)


@pytest.mark.parametrize(("client", "proxy", "size"), [(CLIENT, PROXY, 24), (CLIENT6, PROXY6, 56)])
def test_process_is_that_of_the_clients_own_end(client: End, proxy: End, size: int) -> None:
    assert len(row(client, proxy)) == size
    rows = (row(proxy, client, process=1), row(client._replace(port=1), proxy, process=2), row(client, proxy))
    assert process_of(table(*rows), client, proxy) == 4711
    assert process_of(table(*rows) + b"further bytes", client, proxy) == 4711


@pytest.mark.parametrize(("client", "proxy"), [(CLIENT, PROXY), (CLIENT6, PROXY6)])
@pytest.mark.parametrize("state", range(14))
def test_socket_that_is_not_live_has_no_process(client: End, proxy: End, state: int) -> None:
    found = process_of(table(row(client, proxy, state)), client, proxy)
    assert found == (4711 if state in LIVE_STATES else None)


@pytest.mark.parametrize(("client", "proxy"), [(CLIENT, PROXY), (CLIENT6, PROXY6)])
def test_socket_without_a_named_process_is_not_a_closed_one(client: End, proxy: End) -> None:
    assert process_of(table(row(client, proxy, process=0)), client, proxy) == 0


@pytest.mark.parametrize(("client", "proxy"), [(CLIENT, PROXY), (CLIENT6, PROXY6)])
def test_table_that_is_cut_off_is_read_as_far_as_it_goes(client: End, proxy: End) -> None:
    whole = table(row(proxy, client), row(client, proxy))
    for length in range(len(whole)):
        assert process_of(whole[:length], client, proxy) is None
    assert process_of(table(row(client, proxy), count=2**32 - 1), client, proxy) == 4711
    assert process_of(table(row(client, proxy), count=0), client, proxy) is None


@pytest.mark.parametrize(("client", "proxy"), [(CLIENT, PROXY), (CLIENT6, PROXY6)])
def test_bytes_of_the_port_elsewhere_in_a_table_are_no_port(client: End, proxy: End) -> None:
    other, port = row(client._replace(port=1), proxy), client.port.to_bytes(2, "big")
    for place in range(len(other) - 1):
        rows = other[:place] + port + other[place + 2 :], row(client, proxy)
        alike = rows[0][: -len(b"proc")] == rows[1][: -len(b"proc")]
        assert alike == (place == (8 if client == CLIENT else 20))
        assert process_of(table(*rows), client, proxy) == 4711
        assert process_of(table(rows[0]), client, proxy) == (4711 if alike else None)
    assert process_of(port + b"\0\0" + row(client, proxy) * 2, client, proxy) == 4711, "the port's bytes as the count"
