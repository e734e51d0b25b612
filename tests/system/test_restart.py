"""The sockets of a service manager survive the proxy: clients wait during a restart, and none is refused.

systemd itself is not there, so a test holds the sockets as it does (sd_listen_fds(3)) and hands them to one process
after another.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection, IncompleteRead, RemoteDisconnected
from pathlib import Path

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from tests.kit import METADATA, ROOT, environment, wait_until
from tests.targets import INSTANCE

pytestmark = pytest.mark.system

CLIENTS = 8  # of each kind
RESTARTS = 4

# Takes the descriptors to where sd_listen_fds(3) says that they begin, and becomes the command.
_HAND_OVER = """
import fcntl, os, sys
names, numbers, *command = sys.argv[1:]
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in numbers.split(",")]
os.closerange(3, 100)
for place, number in enumerate(high, 3):
    os.dup2(number, place)
    os.close(number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=names)
os.execvp(command[0], command)
"""


class Manager:
    """Holds a TCP and a Unix socket, and starts the proxy with them."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.tcp = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = int(self.tcp.getsockname()[1])
        self.path = folder / "imdsproxy.sock"
        self.unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.unix.bind(str(self.path))
        self.unix.listen(2048)
        self._log = folder / "service.log"
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        numbers = (self.tcp.fileno(), self.unix.fileno())
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-ISc",
                        _HAND_OVER,
                        "imdsproxy.socket:imdsproxy.socket",
                        ",".join(map(str, numbers)),
                    ),
                    *(sys.executable, "-m", "imdsproxy"),
                ],
                env=environment(**self._settings),
                cwd=ROOT,
                stderr=log,
                pass_fds=numbers,
            )

    def end(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait(15)
        assert status == (0 if how == signal.SIGTERM else -how), self.log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        self.tcp.close()
        self.unix.close()


@pytest.fixture
def imds() -> Iterator[EmulatorServer]:
    with run_in_thread(Emulator(rate=0, identity_rate=0)) as server:
        yield server


@pytest.fixture
def manager(tmp_path: Path, imds: EmulatorServer) -> Iterator[Manager]:
    with contextlib.closing(Manager(tmp_path, upstream=imds.url)) as manager:
        yield manager


class _Connection(HTTPConnection):
    """A connection to either of the manager's sockets."""

    def __init__(self, manager: Manager, kind: str) -> None:
        super().__init__("127.0.0.1", manager.port, timeout=30)
        self._path = str(manager.path) if kind == "unix" else None

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(manager: Manager, kind: str) -> str:
    """Send a request over a new connection. Return the status, why it was refused, or `cut` if it was cut off later."""
    connection = _Connection(manager, kind)
    try:
        connection.connect()
    except OSError as error:
        return f"refused: {error}"
    try:
        connection.request("GET", INSTANCE, headers=METADATA)
        response = connection.getresponse()
        response.read()
    except (RemoteDisconnected, IncompleteRead, ConnectionError):
        return "cut"
    else:
        return str(response.status)
    finally:
        connection.close()


def test_connection_during_a_restart_waits_for_the_next_proxy(manager: Manager) -> None:
    for _ in range(2):
        with ThreadPoolExecutor(2 * CLIENTS) as threads:
            waiting = [threads.submit(ask, manager, kind) for kind in ("tcp", "unix") for _ in range(CLIENTS)]
            time.sleep(0.3)
            assert not any(map(Future.done, waiting))
            manager.start()
            assert {future.result() for future in waiting} == {"200"}
        manager.end(signal.SIGTERM)
        assert manager.path.is_socket(), "it is the manager's, and was not to be taken away"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restart_under_load_refuses_no_client(manager: Manager, how: signal.Signals) -> None:
    outcomes: dict[str, Counter[str]] = {"tcp": Counter(), "unix": Counter()}
    enough = threading.Event()

    def go_on_asking(kind: str) -> Counter[str]:
        found: Counter[str] = Counter()
        while not enough.is_set():
            found[ask(manager, kind)] += 1
        return found

    manager.start()
    with ThreadPoolExecutor(2 * CLIENTS) as threads:
        clients = [(kind, threads.submit(go_on_asking, kind)) for kind in outcomes for _ in range(CLIENTS)]
        try:
            for number in range(RESTARTS):
                wait_until(lambda started=number + 1: manager.log.count(" ready\n") == started)
                time.sleep(0.3)  # under load
                manager.end(how)
                manager.start()
            assert ask(manager, "unix") == "200"
        finally:
            enough.set()
        for kind, client in clients:
            outcomes[kind] += client.result()
    for kind, found in outcomes.items():
        assert found.keys() <= {"200", "cut"}, (kind, found)
        assert found["200"] > RESTARTS * CLIENTS
        # Those whose connection the proxy that is ended has taken already, a connection a client at the most.
        assert found["cut"] <= (RESTARTS * CLIENTS if how == signal.SIGKILL else 0), (kind, found)
    manager.end(signal.SIGTERM)
