"""Windows' tables of TCP connections, as GetExtendedTcpTable returns them (iprtrmib.h, tcpmib.h).

A table is a count, and then one row a socket: MIB_TCPROW_OWNER_PID or MIB_TCP6ROW_OWNER_PID. All numbers have the
machine's order, which is little-endian on every Windows. Ports are the exception: they stand in the first two bytes of
their number, in network order.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from imdsproxy.peers.sock_diag import End

_COUNT = struct.Struct("<I")
_BYTES_V4 = 4
LIVE_STATES = frozenset({5, 6, 7, 8})
"""ESTAB, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT of MIB_TCP_STATE: the states in which a client may wait for an answer."""


class _Layout(NamedTuple):
    """How a row is read."""

    row: struct.Struct
    local_port: int
    """The bytes before it in a row."""
    ends: slice
    """The fields with local address and port, remote address and port."""
    state: int
    """The field with the state. The process is the last field of all rows."""


# State, local address and port, remote address and port, process.
_V4 = _Layout(struct.Struct("<I4s2s2x4s2s2xI"), local_port=8, ends=slice(1, 5), state=0)
# Local address, scope and port, remote address, scope and port, state, process.
_V6 = _Layout(struct.Struct("<16s4x2s2x16s4x2s2xII"), local_port=20, ends=slice(4), state=4)


def process_of(table: bytes, local: End, remote: End) -> int | None:
    """Return the process that has the live socket with these ends, or None if there is no such socket.

    It is 0 if the table names no process.

    Args:
        table: The table of the addresses' family; whatever follows its last row is ignored.
        local: The socket's own end.
        remote: The end that it is connected to.
    """
    if len(table) < _COUNT.size:
        return None
    layout = _V4 if len(local.address) == _BYTES_V4 else _V6
    size = layout.row.size
    rows = min(_COUNT.unpack_from(table)[0], (len(table) - _COUNT.size) // size)
    wanted = local.address, _port(local), remote.address, _port(remote)
    first = _COUNT.size + layout.local_port
    # The event loop waits for this, and a busy machine has tens of thousands of rows. So only those with the two bytes
    # of the port are read.
    found = table.find(wanted[1])
    while found >= 0:
        number, remainder = divmod(found - first, size)
        if not remainder and 0 <= number < rows:
            fields = layout.row.unpack_from(table, _COUNT.size + number * size)
            if fields[layout.ends] == wanted and fields[layout.state] in LIVE_STATES:
                return int(fields[-1])
        found = table.find(wanted[1], found + 1)
    return None


def _port(end: End) -> bytes:
    return end.port.to_bytes(2, "big")
