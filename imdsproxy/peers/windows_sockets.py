"""What Windows knows of a connection's other end: the process, its program and its user.

The table of TCP connections names the process of every socket to everyone. Its program and its user are readable for
processes of the proxy's own user, and for an administrator. Windows has no redirect of connections, so the end that the
client called is this one.

Users are known by their SID. Their names are not looked up, because a domain controller may take seconds to answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sys
from collections.abc import Iterator

from imdsproxy.peers.sock_diag import End, unmapped
from imdsproxy.peers.windows_tcp_tables import process_of
from imdsproxy.protocol.peer import Peer, PeerKind

assert sys.platform == "win32"  # noqa: S101  # `lookup` chooses by the system; this tells the type checker

_OWNERS_OF_ALL = 5  # TCP_TABLE_OWNER_PID_ALL
_V4, _V6 = 2, 23  # AF_INET, AF_INET6 on Windows
_TOO_SMALL = 122  # ERROR_INSUFFICIENT_BUFFER
_QUERY_PROCESS = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
_QUERY_TOKEN = 0x0008  # TOKEN_QUERY
_TOKEN_USER = 1
_LONGEST_PATH = 32_768
_TRIES = 4
_WELL_KNOWN = {"S-1-5-18": "SYSTEM", "S-1-5-19": "LOCAL SERVICE", "S-1-5-20": "NETWORK SERVICE"}


class WindowsSockets:
    """Asks Windows about connections. Only the event loop's thread may use it."""

    def __init__(self) -> None:
        self._helper = ctypes.WinDLL("iphlpapi")
        self._kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        self._rights = ctypes.WinDLL("advapi32", use_last_error=True)
        self._kernel.OpenProcess.restype = ctypes.c_void_p
        self._room = 16_384

    def over_tcp(self, connection: socket.SocketType, client: tuple[str, int] | None = None) -> Peer:
        """Return the client of a TCP connection; see `lookup.Sockets`."""
        host, port = client or connection.getpeername()[:2]
        own_host, own_port = connection.getsockname()[:2]
        there, here = End(_packed(host), port), End(_packed(own_host), own_port)
        if not (there.is_loopback or there.address == here.address):
            return Peer(host, kind=PeerKind.TCP)  # another machine, whose sockets no table has
        try:
            process = process_of(self._table(_V4 if len(there.address) == len(b"v4v4") else _V6), there, here)
        except OSError as error:
            return Peer(host, kind=PeerKind.TCP, unknown=f"Windows does not say who has the socket ({error})")
        if process is None:
            return Peer(host, kind=PeerKind.TCP, unknown="the client has closed its socket")
        if not process:
            unnamed = "Windows names no process that has the client's socket"
            return Peer(host, kind=PeerKind.TCP, unknown=unnamed)
        return self._described(host, process)

    def at_unix_socket(self, connection: socket.SocketType) -> Peer:
        """Return a client of which nothing is known, because the proxy has no Unix sockets on Windows."""
        del connection
        return Peer(kind=PeerKind.UNIX, unknown="Windows does not say who is at a Unix socket")

    def close(self) -> None:
        """Do nothing: no handle is kept."""

    def _table(self, family: int) -> bytes:
        """Return the table of TCP connections. It can grow between two calls."""
        status = _TOO_SMALL
        for _ in range(_TRIES):
            table, size = ctypes.create_string_buffer(self._room), ctypes.c_ulong(self._room)
            status = self._helper.GetExtendedTcpTable(table, ctypes.byref(size), 0, family, _OWNERS_OF_ALL, 0)
            if status != _TOO_SMALL:
                break
            self._room = size.value + 4096
        if status:
            raise OSError(f"GetExtendedTcpTable: error {status}")
        return table.raw[: size.value]

    def _described(self, host: str, process: int) -> Peer:
        """Return the client with what may be read of its process."""
        with self._opened(process) as handle:
            if handle is None:
                why = f"process {process} may not be read (error {ctypes.get_last_error()}): it is another user's"
                return Peer(host, process=process, kind=PeerKind.TCP, unknown=why)
            user, program = self._user(handle), self._program(handle)
        if user is None:
            why = f"the user of process {process} may not be read (error {ctypes.get_last_error()})"
            return Peer(host, process=process, executable=program, kind=PeerKind.TCP, unknown=why)
        return Peer(
            host,
            user=user,
            process=process,
            user_name=_WELL_KNOWN.get(user),
            executable=program,
            kind=PeerKind.TCP,
        )

    @contextlib.contextmanager
    def _opened(self, process: int) -> Iterator[ctypes.c_void_p | None]:
        """Open a process. While the handle is open, its number is not given to another process."""
        handle = self._kernel.OpenProcess(_QUERY_PROCESS, 0, process)
        if not handle:
            yield None
            return
        try:
            yield ctypes.c_void_p(handle)
        finally:
            self._kernel.CloseHandle(ctypes.c_void_p(handle))

    def _program(self, handle: ctypes.c_void_p) -> str | None:
        path = ctypes.create_unicode_buffer(_LONGEST_PATH)
        size = ctypes.c_ulong(_LONGEST_PATH)
        known = self._kernel.QueryFullProcessImageNameW(handle, 0, path, ctypes.byref(size))
        return path.value if known else None

    def _user(self, handle: ctypes.c_void_p) -> str | None:
        """Return the SID of a process's user as text, or None if its token may not be read."""
        token = ctypes.c_void_p()
        if not self._rights.OpenProcessToken(handle, _QUERY_TOKEN, ctypes.byref(token)):
            return None
        try:
            size = ctypes.c_ulong(0)
            self._rights.GetTokenInformation(token, _TOKEN_USER, None, 0, ctypes.byref(size))
            found = ctypes.create_string_buffer(max(size.value, ctypes.sizeof(ctypes.c_void_p)))
            if not self._rights.GetTokenInformation(token, _TOKEN_USER, found, size, ctypes.byref(size)):
                return None
            return _written(self._rights, self._kernel, ctypes.c_void_p.from_buffer(found))
        finally:
            self._kernel.CloseHandle(token)


def sid_of(name: str) -> str | None:
    """Return the SID of a user by its name, such as `Administrators`, or None if there is no such user.

    A domain controller may be asked, so this can take seconds.
    """
    rights = ctypes.WinDLL("advapi32", use_last_error=True)
    size, room, kind = ctypes.c_ulong(256), ctypes.c_ulong(256), ctypes.c_int()
    sid, domain = ctypes.create_string_buffer(256), ctypes.create_unicode_buffer(256)
    found = rights.LookupAccountNameW(
        None, ctypes.c_wchar_p(name), sid, ctypes.byref(size), domain, ctypes.byref(room), ctypes.byref(kind)
    )
    return _written(rights, ctypes.WinDLL("kernel32"), sid) if found else None


def _written(rights: ctypes.CDLL, kernel: ctypes.CDLL, sid: object) -> str | None:
    """Return a SID as text, such as `S-1-5-18`."""
    text = ctypes.c_wchar_p()
    if not rights.ConvertSidToStringSidW(sid, ctypes.byref(text)):
        return None
    try:
        return text.value
    finally:
        kernel.LocalFree(text)


def _packed(host: str) -> bytes:
    if ":" in host:
        return unmapped(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
    return socket.inet_aton(host)
