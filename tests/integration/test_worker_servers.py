"""The application under uvicorn, gunicorn, hypercorn and granian, over sockets."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h2.config
import h2.connection
import h2.events
import pytest

from imdsproxy.budget.workers import shared_path
from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from imdsproxy.protocol.address import Address
from imdsproxy.testing.counting import most_in_a_second
from tests.kit import METADATA, ROOT, Arrivals, environment, free_port, get, talk, unused, wait_for_log, wait_until
from tests.otlp import Collector
from tests.size import size
from tests.targets import INSTANCE, TOKEN

pytestmark = [
    pytest.mark.process,
    pytest.mark.client,
    pytest.mark.skipif(sys.platform == "win32", reason="gunicorn and Unix sockets are POSIX only"),
]
END_SECONDS = 15.0
CLIENTS = size(short=15, full=40)
FACTORY = "imdsproxy.app:create_app"
UVICORN = ("uvicorn", "--factory", FACTORY, "--no-access-log")
GUNICORN = ("gunicorn", "-k", "uvicorn_worker.UvicornWorker", f"{FACTORY}()")
HYPERCORN = ("hypercorn", f"{FACTORY}()")
GRANIAN = ("granian", "--factory", FACTORY, "--interface")
SERVERS: dict[str, Sequence[str]] = {
    "uvicorn": (*UVICORN, "--port", "PORT"),
    "uvicorn-h11": (*UVICORN, "--port", "PORT", "--http", "h11"),
    "uvicorn-no-lifespan": (*UVICORN, "--port", "PORT", "--lifespan", "off"),
    "gunicorn": (*GUNICORN, "-b", "127.0.0.1:PORT"),
    "gunicorn-preload": (*GUNICORN, "-b", "127.0.0.1:PORT", "--preload"),
    "hypercorn": (*HYPERCORN, "-b", "127.0.0.1:PORT"),
    "granian": (*GRANIAN, "asgi", "--port", "PORT"),
    "granian-no-lifespan": (*GRANIAN, "asginl", "--port", "PORT"),
}
WORKERS: dict[str, Sequence[str]] = {
    "uvicorn": (*SERVERS["uvicorn"], "--workers", "2"),
    "gunicorn": (*SERVERS["gunicorn"], "-w", "2"),
    "gunicorn-preload": (*SERVERS["gunicorn-preload"], "-w", "2"),
    "hypercorn": (*SERVERS["hypercorn"], "-w", "2"),
    "granian": (*SERVERS["granian"], "--workers", "2"),
}
# granian drops the authority of an absolute-form target, and then Host decides.
DROPS_THE_AUTHORITY = {"granian", "granian-no-lifespan"}


class Run:
    """A server that runs, its port, and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError, http.client.HTTPException):
            return get(self.port, "/-/ready", {}).status == 200
        return False

    def status(self, request_line: str, *fields: str) -> int:
        """Send a request as it is written here; return the status of the answer, 0 if there is none."""
        fields = (*fields, "Metadata: true", "Connection: close")
        answer = talk(self.port, "\r\n".join((request_line, *fields, "", "")).encode())
        return int(answer.split(b" ", 2)[1]) if answer else 0


@contextlib.contextmanager
def served_by(arguments: Sequence[str], folder: Path, run_class: type[Run] = Run, **settings: object) -> Iterator[Run]:
    port, log = free_port(), folder / "log"
    home = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}  # gunicorn opens a control socket there
    command = [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.replace("PORT", str(port)) for part in command],
            env={**environment(**{"budget_requests": 100, **settings}), **home},
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        run = run_class(process, port, log)
        wait_until(run.ready, 30)
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
        # No other test has this emulator's port, so no other test shares that file.
        upstream = Address("127.0.0.1", int(str(settings["upstream"]).rpartition(":")[2]))
        Path(shared_path(upstream)).unlink(missing_ok=True)


@pytest.fixture(scope="module", params=SERVERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(name: str, imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Start the server; that it becomes ready is the first test, with lifespan events and without."""
    with served_by(SERVERS[name], tmp_path_factory.mktemp(name), upstream=imds.url) as run:
        yield run
    assert "Traceback" not in run.log


def test_document_and_token_are_served_and_stored(run: Run, imds: EmulatorServer) -> None:
    arrivals = Arrivals(imds)
    for target in (
        unused(INSTANCE),
        unused(TOKEN),
        "/metadata/%69nstance/compute/vmId?api-version=2021-02-01&format=text",
    ):
        first, second = get(run.port, target), get(run.port, target)
        assert (first.status, second.status) == (200, 200)
        assert "; hit" in second.headers["cache-status"]
        assert first.body
    assert len(arrivals()) <= 3


@pytest.mark.parametrize(
    "target", ["http://evil.example/metadata/instance", "https://169.254.169.254/metadata/instance"]
)
def test_absolute_form_target_for_another_host_is_forbidden(
    run: Run, name: str, imds: EmulatorServer, target: str
) -> None:
    arrivals = Arrivals(imds)
    line = f"GET {target}?api-version=2021-02-01 HTTP/1.1"
    host = target.split("/")[2]
    if target.startswith("http://"):  # as RFC 9112 section 3.2.2 asks of a client, Host is the same
        assert run.status(line, f"Host: {host}") == 403
    if name not in DROPS_THE_AUTHORITY:
        assert run.status(line, "Host: localhost") == 403
        assert run.status(line, f"Host: 127.0.0.1:{run.port}") == 403
        assert arrivals() == []


def test_absolute_form_target_for_imds_is_served(run: Run) -> None:
    target = f"http://169.254.169.254{INSTANCE}"
    assert run.status(f"GET {target} HTTP/1.1", "Host: 169.254.169.254") == 200


@pytest.mark.parametrize(
    ("line", "fields", "statuses"),
    [
        (f"GET {INSTANCE} HTTP/1.1", ("Host: evil.example",), {403}),
        (f"GET {INSTANCE} HTTP/1.1", ("Host: localhost", "Host: evil.example"), {400}),
        (f"GET {INSTANCE} HTTP/1.1", (), {400}),
        (f"GET {INSTANCE} HTTP/1.1", ("Host: localhost", "X-Forwarded-For: 127.0.0.1"), {400}),
        (f"HEAD {INSTANCE} HTTP/1.1", ("Host: localhost",), {405}),
        (f"PUT {INSTANCE} HTTP/1.1", ("Host: localhost", "Content-Length: 0"), {405}),
        (f"DELETE {INSTANCE} HTTP/1.1", ("Host: localhost",), {405}),
        ("OPTIONS * HTTP/1.1", ("Host: localhost",), {405}),
        # uvicorn itself cannot read the authority form, and granian changes protocols once it is refused.
        ("CONNECT evil.example:443 HTTP/1.1", ("Host: evil.example:443",), {405, 400, 0}),
        ("GET /metadata/a%2f..%2fidentity HTTP/1.1", ("Host: localhost",), {400}),
        ("GET /metadata/..%2fidentity/oauth2/token HTTP/1.1", ("Host: localhost",), {400}),
        ("GET /metadata/%2e%2e/x HTTP/1.1", ("Host: localhost",), {400}),
        ("GET metadata/instance HTTP/1.1", ("Host: localhost",), {400}),
        ("GET /elsewhere HTTP/1.1", ("Host: localhost",), {404}),
    ],
)
def test_refusals_are_the_same_under_other_servers(
    run: Run, imds: EmulatorServer, line: str, fields: Sequence[str], statuses: set[int]
) -> None:
    arrivals = Arrivals(imds)
    assert run.status(line, *fields) in statuses
    assert arrivals() == []


def test_pipelined_request_never_changes_the_authority_of_another(run: Run, name: str, imds: EmulatorServer) -> None:
    arrivals = Arrivals(imds)
    evil = "GET http://evil.example/metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    good = "GET /metadata/nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = talk(run.port, (evil + good).encode(), wait=2)
    if name not in DROPS_THE_AUTHORITY:
        assert answer.split(b" ", 2)[1] in {b"400", b"403"}
        assert not Arrivals(imds, "/metadata/instance")()
        assert all(not arrival.target.startswith(b"/metadata/instance") for arrival in arrivals())


def test_half_closed_and_disconnected_clients_do_no_harm(run: Run) -> None:
    request = f"GET {unused(INSTANCE)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", run.port), timeout=10) as connection:
        connection.sendall(request)
    with socket.create_connection(("127.0.0.1", run.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            connection.recv(65536)
    assert get(run.port, "/-/healthy").status == 200


@pytest.mark.parametrize("name", ["hypercorn", "granian"])
def test_http_2_is_judged_by_its_authority(name: str, imds: EmulatorServer, tmp_path: Path) -> None:
    more = ("--http", "2") if name == "granian" else ()
    command = (*SERVERS[name], *more)

    def status(port: int, *authority: tuple[str, str]) -> int:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        connection.initiate_connection()
        fields = [(":method", "GET"), (":scheme", "http"), (":path", INSTANCE), *authority, ("metadata", "true")]
        connection.send_headers(1, fields, end_stream=True)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(connection.data_to_send())
            while data := client.recv(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        return int(dict(event.headers or ())[b":status"])
        return 0

    class Http2Run(Run):
        def ready(self) -> bool:
            with contextlib.suppress(OSError):
                return status(self.port, (":authority", "localhost")) == 200
            return False

    with served_by(command, tmp_path, run_class=Http2Run, upstream=imds.url) as run:
        assert status(run.port, (":authority", "evil.example")) == 403
        assert status(run.port) in {400, 0}
        assert status(run.port, (":authority", f"127.0.0.1:{run.port}")) == 200


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("uvicorn", (*UVICORN, "--uds", "PATH")),
        ("gunicorn", (*GUNICORN, "-b", "unix:PATH")),
        ("hypercorn", (*HYPERCORN, "-b", "unix:PATH")),
        ("granian", (*GRANIAN, "asgi", "--uds", "PATH")),
    ],
)
def test_unix_socket_accepts_any_host_name(
    name: str, arguments: Sequence[str], imds: EmulatorServer, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")

    def status(host: str, target: str) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(path)
            client.sendall(
                f"GET {target} HTTP/1.1\r\nHost: {host}\r\nMetadata: true\r\nConnection: close\r\n\r\n".encode()
            )
            with client.makefile("rb") as answer:
                return int(answer.readline().split()[1])

    class UnixRun(Run):
        def ready(self) -> bool:
            with contextlib.suppress(OSError, IndexError):
                return status("localhost", "/-/ready") == 200
            return False

    command = [part.replace("PATH", path) for part in arguments]
    with served_by(command, tmp_path, run_class=UnixRun, upstream=imds.url):
        assert status("localhost", INSTANCE) == 200
        # Any host name will do, where the server says that the request came by a Unix socket.
        assert status("unix", INSTANCE) == (200 if name in {"uvicorn", "gunicorn"} else 403)
        assert status("2852039166", INSTANCE) == 403


class Traced(NamedTuple):
    """A server whose workers send traces, with what it sends its requests and its traces to."""

    run: Run
    imds: EmulatorServer
    collector: Collector
    arrivals: Arrivals


@pytest.fixture(scope="module")
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    name = request.param
    with Collector() as collector, run_in_thread(Emulator(rate=0)) as imds, pytest.MonkeyPatch.context() as patch:
        arrivals = Arrivals(imds)
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        command, folder = WORKERS.get(name) or SERVERS[name], tmp_path_factory.mktemp(name)
        settings: dict[str, Any] = {"budget_requests": 5, "max_wait": 60, "traces": "true"}
        with served_by(command, folder, upstream=imds.url, **settings) as run:
            yield Traced(run, imds, collector, arrivals)
        assert "Traceback" not in run.log


# Before the test of the budget, whose requests have no trace.
@pytest.mark.parametrize("traced", [*WORKERS, "uvicorn-h11"], indirect=True)
def test_workers_export_traces_after_the_fork(traced: Traced) -> None:
    fields = {**METADATA, "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    target = unused(INSTANCE)
    for _ in range(8):
        assert get(traced.run.port, target, fields).status == 200
    requests = traced.collector.wait_for(8, url_scheme="http")
    attempts = traced.collector.wait_for(1, server_address="127.0.0.1", url_path="/metadata/instance")
    assert {(each.trace_id, each.parent_id) for each in requests} == {("a" * 32, "b" * 16)}
    assert {each.outcome for each in requests} == {"miss", "hit"}
    missed = {each.span_id for each in requests if each.outcome == "miss"}
    assert {each.parent_id for each in attempts} == missed


@pytest.mark.skipif(sys.platform != "linux", reason="workers share a budget on Linux only")
@pytest.mark.parametrize("traced", WORKERS, indirect=True)
def test_workers_keep_one_budget(traced: Traced) -> None:
    run = traced.run
    before = len(traced.arrivals())
    clients = [threading.Thread(target=get, args=(run.port, unused(INSTANCE))) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    times = [arrival.at for arrival in traced.arrivals()]
    assert len(times) - before >= CLIENTS
    assert most_in_a_second(times) <= 5
    wait_for_log(run, "budget shared with the server's other workers")


def test_reload_keeps_the_budget(imds: EmulatorServer, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "module.py").touch()
    command = (*SERVERS["uvicorn"], "--reload", "--reload-dir", str(watched))
    with served_by(command, tmp_path, upstream=imds.url) as run:
        (watched / "module.py").write_text("changed = True\n", encoding="utf-8")
        wait_for_log(run, "budget shared", times=2)
        wait_until(run.ready)
        assert get(run.port, INSTANCE).status == 200


@pytest.mark.skipif(sys.platform != "linux", reason="workers share a budget on Linux only")
def test_workers_that_cannot_share_are_refused_with_the_remedy(tmp_path: Path) -> None:
    arguments = (*GUNICORN, "-b", f"127.0.0.1:{free_port()}")
    command = [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]]
    env = {**environment(budget_requests=200), "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60, check=False)
    Path(shared_path(Address("127.0.0.1", 9))).unlink(missing_ok=True)
    assert ended.returncode == 4  # gunicorn would start a worker that ended otherwise again and again
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("imdsproxy: "))
    for word in ("worker", "IMDSPROXY_BUDGET_FILE", "Run one worker"):
        assert word in line
    assert "Traceback" not in ended.stderr
