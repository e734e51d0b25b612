"""The listeners: TCP, a Unix socket, the admin port, and sockets that were opened before the start."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.kit import (
    METADATA,
    ROOT,
    Answer,
    Arrivals,
    environment,
    free_port,
    get,
    is_hit,
    refused_start,
    running_proxy,
    unused,
    wait_for_log,
    wait_until,
)
from tests.targets import INSTANCE

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")]

PAGES = ("/-/healthy", "/-/ready", "/-/metrics", "/-/status", "/-/status.json")


class UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def ask(path: Path, target: str = INSTANCE) -> Answer:
    connection = UnixConnection(path)
    connection.request("GET", target, headers=METADATA)
    response = connection.getresponse()
    answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    connection.close()
    return answer


def test_unix_socket_serves_like_the_port(imds: EmulatorServer, tmp_path: Path) -> None:
    path = tmp_path / "imdsproxy.sock"
    with running_proxy(tmp_path, upstream=imds.url, uds=path, access_log=True) as proxy:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        target = unused(INSTANCE)
        assert get(proxy.port, target).status == 200
        answer = ask(path, target)
        assert is_hit(answer)
        assert answer.body == get(proxy.port, target).body
        assert {ask(path, page).status for page in PAGES} == {200}
        wait_for_log(proxy, f", process {os.getpid()}")
        wait_for_log(proxy, f"listening address=unix:{path} ")
    assert not path.exists(), "it goes with the proxy"


def test_socket_of_a_killed_proxy_is_replaced_and_of_a_running_one_is_not(imds: EmulatorServer, tmp_path: Path) -> None:
    path = tmp_path / "imdsproxy.sock"
    with running_proxy(tmp_path, upstream=imds.url, uds=path) as proxy:
        proxy.process.kill()
        proxy.process.wait(60)
    assert path.exists()
    with running_proxy(tmp_path, upstream=imds.url, uds=path):
        assert ask(path).status == 200
        assert "is in use by another process" in refused_start(uds=path)
        assert ask(path).status == 200
    assert list(tmp_path.glob("*.sock*")) == []


def test_socket_replaced_by_another_process_is_not_removed(imds: EmulatorServer, tmp_path: Path) -> None:
    path = tmp_path / "imdsproxy.sock"
    with running_proxy(tmp_path, upstream=imds.url, uds=path):
        path.unlink()
        with running_proxy(tmp_path, upstream=imds.url, uds=path) as proxy:
            wait_until(lambda: ask(path, "/-/ready").status == 200)
            stays = path.stat()
            assert proxy.process.poll() is None
            path.rename(tmp_path / "aside.sock")
            (tmp_path / "aside.sock").rename(path)
            assert os.path.samestat(stays, path.stat())
        assert not path.exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text("precious"), "exists and is not a socket"),
        (lambda path: path.mkdir(), "exists and is not a socket"),
        (lambda path: path.parent.rmdir(), "Its folder must exist"),
    ],
    ids=["a file", "a folder", "no folder"],
)
def test_unusable_socket_path_is_reported(make: object, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "imdsproxy.sock"
    make(path)  # type: ignore[operator]
    assert told in refused_start(uds=path)
    if path.is_file():
        assert path.read_text() == "precious"


def test_admin_port_serves_only_the_pages(imds: EmulatorServer, tmp_path: Path) -> None:
    port = free_port()
    with running_proxy(tmp_path, upstream=imds.url, admin_host="127.0.0.1", admin_port=port) as proxy:
        arrivals = Arrivals(imds)
        assert {get(port, page).status for page in PAGES} == {200}
        for target in (unused(INSTANCE), "/metadata/versions", "/METADATA/instance?api-version=2021-02-01"):
            answer = get(port, target)
            assert answer.status == 404
            assert answer.headers["cache-status"] == "imdsproxy; detail=admin-only"
            assert b"IMDSPROXY_ADMIN_PORT serves only the pages under /-/" in answer.body
        assert get(port, "/metadata/scheduledevents?api-version=2020-07-01", method="POST", body=b"{}").status == 404
        assert get(port, "/-/nothing").status == 404
        assert not arrivals()
        assert get(proxy.port, "/-/healthy").status == 200
        wait_for_log(proxy, f"listening address=http://127.0.0.1:{port} serves=/-/")


def test_admin_port_in_use_is_reported_by_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"IMDSPROXY_ADMIN_PORT={port} on 127.0.0.1 cannot be listened on" in refused_start(admin_port=port)


# Sockets of a service manager (sd_listen_fds(3))

_HAND_OVER = """
import fcntl, os, sys
names, numbers, *command = sys.argv[1:]
# By temporary numbers, which do not collide with the final ones.
aside = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in numbers.split(",")]
for place, number in enumerate(aside, start=3):
    os.dup2(number, place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(aside)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


class Manager:
    """Holds listening sockets and passes them to one proxy after another, as systemd does."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self.path = folder / "inherited.sock"
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.admin = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(self.path))
        self.unix.listen()
        self.log = folder / "log"
        self._upstream = upstream

    @property
    def port(self) -> int:
        return int(self.tcp.getsockname()[1])

    def start(self, **settings: object) -> subprocess.Popen[bytes]:
        numbers = [listener.fileno() for listener in (self.tcp, self.unix, self.admin)]
        handed = ["tcp:unix:admin", ",".join(map(str, numbers))]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", _HAND_OVER, *handed, sys.executable, "-m", "imdsproxy"],
                env=environment(upstream=self._upstream, **settings),
                cwd=ROOT,
                stderr=log,
                pass_fds=numbers,
            )

    def close(self) -> None:
        for listener in (self.tcp, self.unix, self.admin):
            listener.close()


@pytest.fixture
def manager(imds: EmulatorServer, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path, imds.url)
    yield manager
    manager.close()


def test_inherited_sockets_replace_the_settings(manager: Manager) -> None:
    port = free_port()
    process = manager.start(port=port, admin_port=port + 1, uds=manager.path)
    try:
        assert get(manager.port, INSTANCE).status == 200
        assert ask(manager.path).status == 200
        admin = manager.admin.getsockname()[1]
        assert (get(admin, "/-/ready").status, get(admin, INSTANCE).status) == (200, 404)
        with pytest.raises(ConnectionRefusedError):
            get(port, INSTANCE)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert manager.path.exists(), "it is the manager's"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_connection_during_a_restart_waits_and_is_served(manager: Manager, end: signal.Signals) -> None:
    statuses: list[int] = []
    process = manager.start()
    get(manager.port, INSTANCE)
    for _ in range(3):
        process.send_signal(end)
        process.wait(15)
        # No proxy accepts now, so these connect and wait.
        waiting = [
            threading.Thread(target=lambda: statuses.append(get(manager.port, INSTANCE).status)),
            threading.Thread(target=lambda: statuses.append(ask(manager.path).status)),
        ]
        for thread in waiting:
            thread.start()
        process = manager.start()
        for thread in waiting:
            thread.join(30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert statuses == [200] * 6


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"LISTEN_FDS": "one"}, "LISTEN_FDS='one' is not a number of sockets"),
        ({"LISTEN_FDS": "3"}, "descriptor 3 of LISTEN_FDS=3 is not"),
    ],
)
def test_inherited_descriptor_that_does_not_listen_is_reported(given: dict[str, str], told: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])",
            *(sys.executable, "-m", "imdsproxy"),
        ],
        env={**environment(port=0), **given},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_inherited_sockets_of_another_process_are_ignored(imds: EmulatorServer, tmp_path: Path) -> None:
    before = dict(os.environ)
    os.environ.update(LISTEN_PID="1", LISTEN_FDS="9")
    try:
        with running_proxy(tmp_path, upstream=imds.url) as proxy:
            assert get(proxy.port, "/-/healthy").status == 200
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_client_in_another_container_is_identified_by_its_user(imds: EmulatorServer, tmp_path: Path) -> None:
    # In a namespace of process numbers of its own the proxy sees none of the clients outside.
    path = tmp_path / "imdsproxy.sock"
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--user",
                "--map-root-user",
                sys.executable,
                "-m",
                "imdsproxy",
            ],
            env=environment(port=0, upstream=imds.url, uds=path, access_log=True),
            cwd=ROOT,
            stderr=stderr,
        )
    try:
        if process.poll() is None:
            wait_until(lambda: path.exists() or process.poll() is not None)
        if process.poll() is not None:
            pytest.skip(f"this system allows no namespaces: {log.read_text()}")
        assert ask(path).status == 200
        wait_until(lambda: "path=/metadata/instance" in log.read_text())
        assert ', another container"' in log.read_text()
    finally:
        process.kill()
        process.wait(60)
