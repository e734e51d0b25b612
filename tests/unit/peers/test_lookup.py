"""The client of a connection, from the kernel. Each connection is on this machine's loopback."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from imdsproxy.peers.linux_sockets import LinuxSockets, packed
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.peers.sock_diag import End, NoOwner
from imdsproxy.peers.users import UserNames
from imdsproxy.protocol.peer import Peer, PeerKind, Pod, describe
from imdsproxy.testing.clock import FakeClock
from tests.kit import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="users are looked up on Linux only")


@contextlib.contextmanager
def connected(
    family: int = socket.AF_INET, host: str = "127.0.0.1", *, client_family: int | None = None, to: str = ""
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect over loopback. Yields the client's end and the proxy's."""
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind((host, 0))
        listening.listen()
        with socket.socket(client_family or family, socket.SOCK_STREAM) as client:
            client.connect((to or host, listening.getsockname()[1]))
            accepted, _ = listening.accept()
            with accepted:
                yield client, accepted


@pytest.fixture
def peers() -> Iterator[PeerLookup]:
    peers = PeerLookup()
    yield peers
    peers.close()


@pytest.fixture
def sockets() -> Iterator[LinuxSockets]:
    sockets = LinuxSockets()
    yield sockets
    sockets.close()


@pytest.mark.parametrize("pod", [Pod("shop", "web-1", "web"), None])
def test_client_has_the_pod_of_its_address(pod: Pod | None) -> None:
    asked: list[str] = []

    def pod_at(address: str) -> Pod | None:
        asked.append(address)
        return pod

    peers = PeerLookup(pod_at)
    with connected() as (_, accepted):
        assert peers.find(accepted).pod is pod
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert peers.find(right).pod is None
    peers.close()
    assert asked == ["127.0.0.1"]


def test_client_on_another_machine_is_described_by_its_address_and_pod() -> None:
    assert describe(Peer("10.244.0.5", pod=Pod("shop", "web-1", "web"))) == "10.244.0.5 (pod shop/web-1)"
    assert describe(Peer("10.244.0.5")) == "10.244.0.5"
    assert describe(Peer("127.0.0.1", 33, pod=Pod("shop", "web-1", "web"))) == "user 33"


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


@pytest.mark.parametrize(
    ("family", "host", "client_family", "to"),
    [
        (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", socket.AF_INET, "127.0.0.1"),  # within this test's namespace
        (socket.AF_INET, "127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
        (socket.AF_INET6, "::1", socket.AF_INET6, "::1"),
        (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET6, "::", socket.AF_INET6, "::ffff:127.0.0.1"),
    ],
)
def test_tcp_client_has_its_user_and_socket(
    peers: PeerLookup, family: int, host: str, client_family: int, to: str
) -> None:
    with connected(family, host, client_family=client_family, to=to) as (client, accepted):
        found = peers.find(accepted)
        assert (found.kind, found.user, found.inode) == (PeerKind.TCP, os.getuid(), inode(client))
        assert (found.process, found.unknown) == (None, None)
        assert found.address == accepted.getpeername()[0]


def test_client_bound_to_the_loopback_interface_is_found(peers: PeerLookup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        try:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        except PermissionError:
            pytest.skip("SO_BINDTODEVICE needs a privilege here")
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            assert peers.find(accepted).inode == inode(client)


def test_client_that_has_ended_its_sending_is_found(peers: PeerLookup) -> None:
    with connected() as (client, accepted):
        client.sendall(b"GET")
        client.shutdown(socket.SHUT_WR)
        assert peers.find(accepted).inode == inode(client)


def test_client_that_has_closed_is_unknown_and_not_root(peers: PeerLookup) -> None:
    with connected() as (client, accepted):
        client.sendall(b"GET /metadata/identity/oauth2/token HTTP/1.1\r\n\r\n")
        client.close()
        assert accepted.recv(1000).startswith(b"GET ")
        found = peers.find(accepted)
        assert (found.user, found.inode) == (None, None)
        assert found.unknown == "the client has closed its socket"
        assert describe(found) == "127.0.0.1"


def test_client_in_time_wait_is_unknown_and_not_root(sockets: LinuxSockets) -> None:
    with connected() as (client, accepted):
        ends = client.getsockname(), client.getpeername()
        client.close()
        accepted.close()
        one, other = (End(packed(host), port) for host, port in ends)
        wait_until(lambda: _time_wait(one.port))
        found = sockets.owner(one, other)
        assert isinstance(found, NoOwner)
        assert found.why == "the client has closed its socket"


def _time_wait(port: int) -> bool:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "06" for row in rows)


def test_listener_at_the_clients_address_is_not_the_client(sockets: LinuxSockets) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        here = packed("127.0.0.1")
        found = sockets.owner(End(here, port), End(here, 9))
        assert isinstance(found, NoOwner)


def test_connection_that_has_ended_is_unknown(peers: PeerLookup) -> None:
    with connected() as (client, accepted):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)
        found = peers.find(accepted)
        assert found.user is None
        assert "the connection has ended" in str(found.unknown)


def test_client_whose_port_another_socket_has_by_now_is_unknown(peers: PeerLookup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # A bound port belongs to this socket alone. One that connect() chooses may be shared by another connection.
        first = socket.create_connection(listening.getsockname(), source_address=("127.0.0.1", 0))
        first.sendall(b"POST /metadata/scheduledevents HTTP/1.1")
        accepted, address = listening.accept()
        with accepted, socket.socket() as second:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            first.close()
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            second.bind(address)
            second.connect(listening.getsockname())
            found = peers.find(accepted, address)
            assert (found.user, found.inode) == (None, None)
            assert "the connection has ended" in str(found.unknown)


def test_socket_that_is_passed_on_stays_its_makers(peers: PeerLookup) -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    with connected() as (client, accepted), left, right:
        socket.send_fds(left, [b"x"], [client.fileno()])
        made = inode(client)
        client.close()
        _, (passed,), _, _ = socket.recv_fds(right, 1, 1)
        try:
            assert peers.find(accepted).inode == made
        finally:
            os.close(passed)


def test_unix_client_has_its_user_process_and_program(peers: PeerLookup) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        found = peers.find(other)
        assert (found.kind, found.user, found.process) == (PeerKind.UNIX, os.getuid(), os.getpid())
        assert found.executable == str(Path("/proc/self/exe").readlink())


def test_program_at_a_unix_socket_is_looked_up_only_where_it_is_used() -> None:
    peers = PeerLookup(programs=False)
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        found = peers.find(other)
        assert (found.user, found.process, found.executable) == (os.getuid(), os.getpid(), None)


class Tracked:
    """A connection whose kernel tracks connections from a moment on."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.asked = 0
        self.error: int | None = errno.ENOPROTOOPT

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 2

    def getsockopt(self, *_: int) -> bytes:
        self.asked += 1
        if self.error is not None:
            raise OSError(self.error, "no")
        return struct.pack("=H2s4s8x", 2, (80).to_bytes(2, "big"), bytes((169, 254, 169, 254)))


def test_redirects_are_looked_for_once_a_second_where_no_connection_can_be_redirected() -> None:
    clock = FakeClock()
    sockets = LinuxSockets(now=clock.monotonic)
    connection = Tracked()
    here, imds = End(packed("127.0.0.1"), 2), End(packed("169.254.169.254"), 80)
    assert [sockets._called(connection) for _ in range(3)] == [here] * 3  # type: ignore[arg-type]  # as a socket
    assert connection.asked == 1
    connection.error = None
    clock.advance(1.0)
    assert [sockets._called(connection) for _ in range(3)] == [imds] * 3  # type: ignore[arg-type]  # the same
    connection.error = errno.ENOENT  # connections are tracked, and this one is not
    assert [sockets._called(connection) for _ in range(3)] == [here] * 3  # type: ignore[arg-type]  # the same
    assert connection.asked == 7


def test_where_the_kernel_cannot_be_asked_the_address_remains(
    peers: PeerLookup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def confined(*_: int) -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    with connected() as (_, accepted):
        monkeypatch.setattr(socket, "SocketType", confined)
        for _ in range(2):
            found = peers.find(accepted)
            assert found[:2] == ("127.0.0.1", None)
            assert "Address family not supported" in str(found.unknown)
        assert [record.message for record in caplog.records] == ["users of TCP clients are unknown"]


def test_failure_of_the_moment_is_tried_again(peers: PeerLookup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> socket.socket:
        raise OSError(24, "Too many open files")

    with connected() as (_, accepted):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "SocketType", full)
            assert "Too many open files" in str(peers.find(accepted).unknown)
        assert peers.find(accepted).user == os.getuid()


def test_user_without_a_number_in_this_namespace_is_unknown(peers: PeerLookup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers._sockets, "_overflow", os.getuid())
    with connected() as (_, accepted):
        found = peers.find(accepted)
        assert found.user is None
        assert "user namespace" in str(found.unknown)


def test_name_of_a_user_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "passwd"
    seconds = count(step=2)
    names = UserNames(str(file), lambda: next(seconds))
    assert names.of(33) is None
    file.write_text("root:x:0:0::/:\nwww:x:33:33::/:\nalias:x:33:33::/:\n\nbroken\nother:x:no:1:\n")
    assert (names.of(33), names.of(0), names.of(1)) == ("www", "root", None)
    file.write_text("web-server:x:33:33::/:\n")
    assert names.of(33) == "web-server"
    file.unlink()
    assert names.of(33) is None


def test_file_of_users_is_looked_at_once_a_second(tmp_path: Path) -> None:
    file = tmp_path / "passwd"
    times = iter([0.0, 0.9, 1.0])
    names = UserNames(str(file), lambda: next(times))
    assert names.of(33) is None
    file.write_text("www:x:33:33::/:\n")
    assert [names.of(33), names.of(33)] == [None, "www"]


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (Peer(), "-"),
        (Peer(address="10.0.0.7", proxy="abc"), "10.0.0.7"),
        (Peer(address="127.0.0.1", user=33, user_name="www", kind=PeerKind.TCP), "user 33 (www)"),
        (Peer(user=0, process=12, executable="/bin/sh", kind=PeerKind.UNIX), "user 0, process 12 (/bin/sh)"),
        (Peer(user=0, kind=PeerKind.UNIX), "user 0, another container"),
        (Peer(address="127.0.0.1", process=12), "process 12"),
    ],
)
def test_description_names_user_and_process_or_address(peer: Peer, name: str) -> None:
    assert describe(peer) == peer.name == name
