"""Windows' tables of TCP connections, as GetExtendedTcpTable returns them (iprtrmib.h, tcpmib.h).

A table is a count, and then one row a socket: MIB_TCPROW_OWNER_PID or MIB_TCP6ROW_OWNER_PID. All numbers have the
machine's order, which is little-endian on every Windows. Ports are the exception: they stand in the first two bytes of
their number, in network order.
"""

from __future__ import annotations

import struct

from imdsproxy.peers.sock_diag import End

_COUNT = struct.Struct("<I")
_BYTES_V4 = 4
# State, local address and port, remote address and port, process.
_ROW_V4 = struct.Struct("<I4s2s2x4s2s2xI")
# Local address, scope and port, remote address, scope and port, state, process.
_ROW_V6 = struct.Struct("<16s4x2s2x16s4x2s2xII")
LIVE_STATES = frozenset({5, 6, 7, 8})
"""ESTAB, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT of MIB_TCP_STATE: the states in which a client may wait for an answer."""


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
    (count,) = _COUNT.unpack_from(table)
    if len(local.address) == _BYTES_V4:
        return _among(table, count, local, remote)
    return _among_v6(table, count, local, remote)


def _among(table: bytes, count: int, local: End, remote: End) -> int | None:
    wanted = local.address, _port(local), remote.address, _port(remote)
    for index in range(min(count, (len(table) - _COUNT.size) // _ROW_V4.size)):
        state, *ends, process = _ROW_V4.unpack_from(table, _COUNT.size + index * _ROW_V4.size)
        if tuple(ends) == wanted and state in LIVE_STATES:
            return int(process)
    return None


def _among_v6(table: bytes, count: int, local: End, remote: End) -> int | None:
    wanted = local.address, _port(local), remote.address, _port(remote)
    for index in range(min(count, (len(table) - _COUNT.size) // _ROW_V6.size)):
        *ends, state, process = _ROW_V6.unpack_from(table, _COUNT.size + index * _ROW_V6.size)
        if tuple(ends) == wanted and state in LIVE_STATES:
            return int(process)
    return None


def _port(end: End) -> bytes:
    return end.port.to_bytes(2, "big")
