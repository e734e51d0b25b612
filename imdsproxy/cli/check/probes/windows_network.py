"""What Windows says about routes, the portproxy and processes, read through its own libraries."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sys
from collections.abc import Iterator

from imdsproxy.cli.check.facts import Process, Reach, Route
from imdsproxy.cli.check.probes.processes import AGENTS
from imdsproxy.cli.check.probes.windows_tables import FORWARD_ROW, read_addresses, read_row
from imdsproxy.protocol.messages import IMDS_HOST

assert sys.platform == "win32"  # noqa: S101  # only imported there; this tells the type checker

import winreg  # noqa: E402  # behind the line above

# ERROR_NO_DATA, _CAN_NOT_COMPLETE, _NOT_FOUND, _NETWORK_UNREACHABLE, _HOST_UNREACHABLE of winerror.h.
_NO_ROUTE = {232, 1003, 1168, 1231, 1232}
_PORT_PROXY = r"SYSTEM\CurrentControlSet\Services\PortProxy\v4tov4\tcp"
_SNAPSHOT_OF_PROCESSES = 2


def route_on_windows(target: str) -> Route:
    """Return the route to an IPv4 address (GetBestRoute)."""
    library = ctypes.WinDLL("iphlpapi")
    row = ctypes.create_string_buffer(FORWARD_ROW.size)
    wanted = int.from_bytes(socket.inet_aton(target), "little")
    status = library.GetBestRoute(wanted, 0, row)
    addresses = list(_addresses(library))
    if any(address == target for address, *_ in addresses):
        return Route(Reach.LOCAL)
    if status in _NO_ROUTE:
        return Route(Reach.NO_ROUTE)
    if status != 0:
        return Route(Reach.UNKNOWN, why=f"GetBestRoute failed with error {status}")
    return read_row(row.raw, addresses)


def _addresses(library: ctypes.CDLL) -> Iterator[tuple[str, int, bool]]:
    size = ctypes.c_ulong(0)
    library.GetIpAddrTable(None, ctypes.byref(size), 0)
    table = ctypes.create_string_buffer(max(4, size.value))
    if library.GetIpAddrTable(table, ctypes.byref(size), 0) == 0:
        yield from read_addresses(table.raw)


def port_proxy() -> str:
    """Return where Windows' portproxy sends 169.254.169.254:80, or the empty string."""
    with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _PORT_PROXY) as key:
        return str(winreg.QueryValueEx(key, f"{IMDS_HOST}/80")[0]).replace("/", ":")
    return ""


class _Entry(ctypes.Structure):
    """PROCESSENTRY32W of tlhelp32.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("usage", ctypes.c_uint32),
        ("process", ctypes.c_uint32),
        ("heap", ctypes.c_size_t),
        ("module", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("parent", ctypes.c_uint32),
        ("priority", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
        ("name", ctypes.c_wchar * 260),
    )


def agent_on_windows() -> Process | None:
    """Return the Metadata Security Protocol's agent if it runs."""
    named = {f"{agent}.exe".lower() for agent in AGENTS}
    return next((process for process in processes_on_windows() if process.name.lower() in named), None)


def processes_on_windows() -> Iterator[Process]:
    """Yield the running processes."""
    kernel = ctypes.WinDLL("kernel32")
    kernel.CreateToolhelp32Snapshot.restype = ctypes.c_void_p
    snapshot = ctypes.c_void_p(kernel.CreateToolhelp32Snapshot(_SNAPSHOT_OF_PROCESSES, 0))
    entry = _Entry(size=ctypes.sizeof(_Entry))
    more = kernel.Process32FirstW(snapshot, ctypes.byref(entry))
    while more:
        yield Process(entry.process, None, entry.name)
        more = kernel.Process32NextW(snapshot, ctypes.byref(entry))
    kernel.CloseHandle(snapshot)
