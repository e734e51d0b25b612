"""Start, state and end of the processes: signals, exit statuses, pages, logs and the demo."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from imdsproxy.emulator.attested import COMMON_NAME
from imdsproxy.policy.endpoints import ENDPOINTS
from imdsproxy.protocol.messages import Target
from imdsproxy.protocol.target import read_target
from imdsproxy.testing.counting import most_in_a_second
from tests import forkserver
from tests.kit import (
    METADATA,
    ROOT,
    Answer,
    ProxyProcess,
    ended,
    environment,
    free_port,
    get,
    is_hit,
    running_proxy,
    wait_for_log,
    wait_until,
)
from tests.targets import INSTANCE, TOKEN, VERSIONS

pytestmark = pytest.mark.process

LEAF = "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"
LOAD_BALANCER = "/metadata/loadbalancer?api-version=2021-02-01"

posix_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Command:
    """A running command of the project, with its output."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, log: Path) -> None:
        self.process = process
        self._out = out
        self._log = log

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def found(self, pattern: str) -> str:
        """Wait until this pattern is in its output, and return the first group."""
        found: list[re.Match[str]] = []

        def said() -> bool:
            found.extend(re.finditer(pattern, self.out + self.log))
            assert found or self.process.poll() is None, self.log
            return bool(found)

        wait_until(said, 30)
        return found[0][1]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(15)


@contextlib.contextmanager
def running(folder: Path, *arguments: str, module: str = "imdsproxy", **settings: object) -> Iterator[Command]:
    """Run `python -m` with these arguments and settings; killed at the end if it has not ended by itself."""
    out, log = folder / "out", folder / "log"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment(**settings),
            cwd=ROOT,
            stdout=stdout,
            stderr=stderr,
        )
    try:
        yield Command(process, out, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that the proxy did not start, and gave the reason in one line."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("imdsproxy"), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr


def obstacle(port: int) -> str:
    """Return the reason why the proxy is not ready, or `""` if it is."""
    answer = get(port, "/-/ready", {})
    if answer.status == 200:
        return ""
    assert answer.status == 503
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["cache-status"] == "imdsproxy; detail=not-ready"
    assert int(answer.headers["retry-after"]) >= 1
    document = json.loads(answer.body)
    assert document["error"] == "not_ready"
    return str(document["error_description"])


def closed_in_time(connection: socket.socket) -> bool:
    """Wait until the other side closes."""
    connection.settimeout(15)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the listener was closed in the middle of the handshake
        return False
    return False


@pytest.fixture(scope="module")
def proxy(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    with running_proxy(tmp_path_factory.mktemp("proxy"), upstream=imds.url, budget_requests=1000) as process:
        yield process


# --- state


def test_proxy_is_healthy_while_it_serves_and_ready_after_imds_answered(tmp_path: Path) -> None:
    port = free_port()
    upstream = f"http://127.0.0.1:{port}"
    with running_proxy(tmp_path, ready=False, upstream=upstream, retry_base=0.1) as process:
        assert get(process.port, "/-/healthy", {}).status == 200
        wait_until(lambda: obstacle(process.port).startswith("IMDS has not answered yet"))
        emulator = Emulator()
        emulator.faults.add(Fault(status=500))
        with run_in_thread(emulator, port=port):
            wait_until(lambda: emulator.arrivals)
            assert obstacle(process.port).startswith("IMDS has not answered yet")
            emulator.faults.clear()
            wait_until(lambda: obstacle(process.port) == "")
            assert {arrival.target for arrival in emulator.arrivals} == {VERSIONS.encode()}
        # Ready is about having been ready: what is kept can be served without IMDS.
        assert get(process.port, "/-/ready", {}).status == 200
        assert get(process.port, "/-/healthy", {}).status == 200


def test_ready_page_states_the_obstacle(tmp_path: Path) -> None:
    upstream = f"http://127.0.0.1:{free_port()}"
    with running_proxy(tmp_path, ready=False, upstream=upstream, retry_max=0) as process:
        wait_until(lambda: f"{upstream} cannot be reached" in obstacle(process.port))
        assert wait_for_log(process, "IMDS fails") == 1


def test_any_answer_but_a_failure_makes_the_proxy_ready(tmp_path: Path) -> None:
    emulator = Emulator()
    emulator.faults.add(Fault(status=404))
    with run_in_thread(emulator) as imds, running_proxy(tmp_path, upstream=imds.url) as process:
        assert len(emulator.arrivals) == 1
        assert process.process.poll() is None


def test_warm_targets_are_hits_for_the_first_client(tmp_path: Path) -> None:
    emulator = Emulator()
    # What IMDS does not have is told, and holds nothing up.
    missing = "/metadata/instance/nothing?api-version=2021-02-01"
    emulator.faults.add(Fault(path="/metadata/instance/compute", latency=1))
    with (
        run_in_thread(emulator) as imds,
        running_proxy(
            tmp_path, ready=False, upstream=imds.url, warmup=f"{INSTANCE},{missing},{TOKEN},{LEAF}"
        ) as process,
    ):
        wait_until(lambda: obstacle(process.port).startswith("Warming up"))
        wait_until(lambda: obstacle(process.port) == "")
        asked = len(emulator.arrivals)
        assert asked == 5
        for target in (INSTANCE, TOKEN, LEAF):
            answer = get(process.port, target)
            assert (answer.status, is_hit(answer)) == (200, True), target
        assert len(emulator.arrivals) == asked
        assert wait_for_log(process, "warm-up target without a document") == 1
        wait_for_log(process, "status 404 for /metadata/instance/nothing")


def test_failed_warm_up_is_repeated_until_it_succeeds(tmp_path: Path) -> None:
    emulator = Emulator()
    emulator.faults.add(Fault(path="/metadata/instance", status=500, times=1))
    with (
        run_in_thread(emulator) as imds,
        running_proxy(tmp_path, upstream=imds.url, warmup=INSTANCE, retry_max=0) as process,
    ):
        assert is_hit(get(process.port, INSTANCE))


@pytest.mark.parametrize("path", ["/-/", "/-", "/-/nothing", "/-/healthy/more", "/-/metricsx"])
def test_unknown_page_is_a_404_in_json(proxy: ProxyProcess, path: str) -> None:
    answer = get(proxy.port, path, {})
    assert answer.status == 404
    assert list(json.loads(answer.body)) == ["error", "error_description"]
    assert answer.headers["cache-status"] == "imdsproxy; detail=no-page"


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready", "/-/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_pages_accept_get_and_head_only(proxy: ProxyProcess, path: str, method: str) -> None:
    assert get(proxy.port, path, method=method).status == 405


# Every documented metric, its type and its labels.
METRICS = {
    "imdsproxy_requests_total": ("counter", {"endpoint", "outcome"}),
    "imdsproxy_request_seconds": ("histogram", {"endpoint"}),
    "imdsproxy_upstream_requests_total": ("counter", {"endpoint", "status"}),
    "imdsproxy_upstream_seconds": ("histogram", {"endpoint"}),
    "imdsproxy_upstream_retries_total": ("counter", {"endpoint", "reason"}),
    "imdsproxy_budget_available": ("gauge", {"class"}),
    "imdsproxy_budget_wait_seconds": ("histogram", {"endpoint"}),
    "imdsproxy_budget_refused_total": ("counter", {"class"}),
    "imdsproxy_cache_entries": ("gauge", set()),
    "imdsproxy_cache_bytes": ("gauge", set()),
    "imdsproxy_token_expiry_seconds": ("gauge", set()),
}


class Figures:
    """What `/-/metrics` says at one moment."""

    def __init__(self, port: int) -> None:
        answer = get(port, "/-/metrics", {})
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        self.types: dict[str, str] = {}
        self.labels: dict[str, set[str]] = {}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(answer.body.decode()):
            name = family.name + ("_total" if family.type == "counter" else "")
            assert family.documentation
            self.types[name] = family.type
            for sample in family.samples:
                pairs = {label: value for label, value in sample.labels.items() if label != "le"}
                self.labels.setdefault(name, set()).update(pairs)
                if "le" not in sample.labels:
                    self.samples[sample.name, frozenset(pairs.items())] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str) -> float:
        return sum(value for (sample, _), value in self.samples.items() if sample == name)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Return the metrics of a proxy after every event that they count."""
    emulator = Emulator(rate=0, identity_rate=0)
    settings: dict[str, Any] = {
        "budget_requests": 100,
        "budget_window": 60,
        "identity_budget_requests": 1,
        "max_wait": 0.5,
        "retry_base": 0.05,
        "retry_max": 0.3,
        "ttl": "/metadata/loadbalancer=0.3",
    }
    folder = tmp_path_factory.mktemp("figures")
    with run_in_thread(emulator) as imds, running_proxy(folder, upstream=imds.url, **settings) as process:
        port = process.port
        for target in (INSTANCE, INSTANCE, TOKEN, f"{TOKEN}&other=1", "/metadata/unknown", "/elsewhere"):
            get(port, target)
        emulator.faults.add(Fault(status=503, times=1))
        get(port, LEAF)
        slow = "/metadata/instance/network?api-version=2021-02-01"
        emulator.faults.add(Fault(path="/metadata/instance/network", latency=0.5))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(get, [port] * 2, [slow] * 2))
        get(port, LOAD_BALANCER)
        time.sleep(0.4)  # a request before its lifetime ends may refresh it, and it would never be stale
        get(port, LOAD_BALANCER)
        emulator.faults.add(Fault(status=500))
        get(port, "/metadata/attested/document?api-version=2021-02-01")
        return Figures(port)


def test_metrics_have_the_contracts_names_types_and_labels(figures: Figures) -> None:
    assert {name: figures.types.get(name) for name in METRICS} == {name: kind for name, (kind, _) in METRICS.items()}
    labels = {name: figures.labels.get(name) for name in METRICS}
    assert labels == {name: expected for name, (_, expected) in METRICS.items()}


def test_every_request_is_counted_once_with_the_contracts_labels(figures: Figures) -> None:
    name = "imdsproxy_requests_total"
    for endpoint, outcome, count in (
        ("instance", "hit", 1),
        ("instance", "miss", 3),
        ("instance", "collapsed", 1),
        ("token", "miss", 1),
        ("token", "refused", 1),
        ("other", "bypass", 1),
        ("none", "refused", 1),
        ("attested", "error", 1),
        ("loadbalancer", "miss", 1),
        ("loadbalancer", "stale", 1),
        ("versions", "miss", 0),  # the proxy's own question is no client's
    ):
        assert figures(name, endpoint=endpoint, outcome=outcome) == count, (endpoint, outcome)
    words = [dict(labels) for sample, labels in figures.samples if sample == name]
    assert {word["outcome"] for word in words} == {"hit", "stale", "miss", "collapsed", "bypass", "refused", "error"}
    assert {word["endpoint"] for word in words} <= ENDPOINTS
    assert figures.total("imdsproxy_request_seconds_count") == figures.total(name)


def test_every_upstream_request_is_counted(figures: Figures) -> None:
    name = "imdsproxy_upstream_requests_total"
    assert figures(name, endpoint="versions", status="200") == 1
    assert figures(name, endpoint="instance", status="503") == 1
    assert figures(name, endpoint="instance", status="200") == 3
    assert figures(name, endpoint="other", status="404") == 1
    assert figures(name, endpoint="attested", status="500") >= 2
    assert figures("imdsproxy_upstream_retries_total", endpoint="instance", reason="503") == 1
    assert figures.total("imdsproxy_upstream_seconds_count") == figures.total(name)


def test_metrics_show_budget_cache_and_token(figures: Figures) -> None:
    assert figures("imdsproxy_budget_refused_total", **{"class": "identity"}) == 1
    assert figures("imdsproxy_budget_available", **{"class": "identity"}) == 0
    asked = figures.total("imdsproxy_upstream_requests_total")
    # All of them lie within one window, and the token was paid for by the other budget.
    assert figures("imdsproxy_budget_available", **{"class": "general"}) == 100 - (asked - 1)
    assert figures.total("imdsproxy_budget_wait_seconds_count") == asked + 1, "the one that was turned away waited, too"
    assert figures("imdsproxy_cache_entries") >= 5
    assert figures("imdsproxy_cache_bytes") > 5000
    assert 86_000 < figures("imdsproxy_token_expiry_seconds") <= 86_400


def test_token_expiry_is_absent_without_a_token(proxy: ProxyProcess) -> None:
    assert ("imdsproxy_token_expiry_seconds", frozenset()) not in Figures(proxy.port).samples


def test_metrics_are_sent_as_openmetrics_where_asked_for(proxy: ProxyProcess) -> None:
    plain = get(proxy.port, "/-/metrics", {"Accept": "text/plain"})
    strict = get(proxy.port, "/-/metrics", {"Accept": "application/openmetrics-text;version=1.0.0"})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert strict.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert strict.headers["vary"] == plain.headers["vary"] == "accept"
    assert strict.body.endswith(b"# EOF\n")


def test_metrics_show_the_state_of_the_process(proxy: ProxyProcess) -> None:
    wait_until(lambda: get(proxy.port, "/-/ready").status == 200)
    found = Figures(proxy.port)
    assert found("imdsproxy_ready") == found("imdsproxy_upstream_up") == 1
    assert found("imdsproxy_upstream_last_success_age_seconds") > 0
    assert 1 <= found("imdsproxy_connections") < found("imdsproxy_connections_limit")
    assert ("imdsproxy_event_loop_lag_seconds", frozenset()) in found.samples
    assert found("python_gc_collections_total", generation="0") >= 0


# --- signals


@posix_signals
def test_sighup_drops_every_entry(imds: EmulatorServer, tmp_path: Path) -> None:
    with running_proxy(tmp_path, upstream=imds.url, budget_requests=1000) as process:
        targets = [INSTANCE, TOKEN, LEAF]
        for hit in (False, True):
            assert [is_hit(get(process.port, target)) for target in targets] == [hit] * 3
        process.signal(signal.SIGHUP)
        wait_for_log(process, "cache emptied entries=4")
        assert process.metric("imdsproxy_cache_entries") == 0
        assert [is_hit(get(process.port, target)) for target in targets] == [False] * 3
        assert get(process.port, "/-/ready", {}).status == 200


@posix_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_proxy_after_requests_under_way(tmp_path: Path, number: int) -> None:
    emulator = Emulator(rate=0)
    emulator.faults.add(Fault(path="/metadata/instance", latency=1.5))
    with (
        run_in_thread(emulator) as imds,
        running_proxy(tmp_path, upstream=imds.url) as process,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", process.port, timeout=15)) as idle,
        socket.create_connection(("127.0.0.1", process.port)) as silent,
        socket.create_connection(("127.0.0.1", process.port)) as halfway,
        ThreadPoolExecutor(1) as pool,
    ):
        idle.request("GET", VERSIONS, headers=METADATA)
        assert idle.getresponse().read().startswith(b'{"apiVersions"')
        halfway.sendall(b"GET /metadata/instance HTTP/1.1\r\nHo")
        under_way = pool.submit(get, process.port, INSTANCE)
        wait_until(lambda: len(emulator.arrivals) == 2)
        process.signal(number)
        for connection in (idle.sock, silent, halfway):
            assert closed_in_time(connection)
        wait_until(lambda: refuses(process.port))
        assert process.process.poll() is None
        assert not under_way.done()
        answer = under_way.result()
        assert (answer.status, json.loads(answer.body)["compute"]["name"]) == (200, "examplevmname")
        assert process.process.wait(9) == 0
        assert "Traceback" not in process.log
        assert not re.search(r"^\S+ (warning|error) ", process.log, re.MULTILINE)


@dataclass
class Farewell:
    """What became of a request that was still under way when the proxy had to end, and of the proxy."""

    answer: Answer
    status: int
    log: str


def _ended_over_a_long_request(folder: Path) -> Farewell:
    emulator = Emulator(rate=0)
    emulator.faults.add(Fault(path="/metadata/instance", hang=True))
    with (
        run_in_thread(emulator) as imds,
        running_proxy(folder, upstream=imds.url, read_timeout=60) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        under_way = pool.submit(get, process.port, INSTANCE)
        wait_until(lambda: len(emulator.arrivals) == 2)
        process.signal(signal.SIGTERM)
        return Farewell(under_way.result(), process.process.wait(20), process.log)


@pytest.fixture(scope="module", autouse=True)
def farewell(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Farewell] | None]:
    """Wait for the ten seconds of grace while the other tests of this module run."""
    if sys.platform == "win32" or not any("outlasts_shutdown" in item.name for item in request.session.items):
        yield None
        return
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_ended_over_a_long_request, tmp_path_factory.mktemp("farewell")).result


@posix_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_proxy_that_is_not_ready(tmp_path: Path, number: int) -> None:
    emulator = Emulator()
    emulator.faults.add(Fault(hang=True))
    with run_in_thread(emulator) as imds, running_proxy(tmp_path, ready=False, upstream=imds.url) as process:
        wait_until(lambda: emulator.arrivals)
        process.signal(number)
        assert process.process.wait(9) == 0
        assert "Traceback" not in process.log


@posix_signals
def test_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    emulator = Emulator(rate=0)
    emulator.faults.add(Fault(path="/metadata/instance", hang=True))
    with (
        run_in_thread(emulator) as imds,
        running_proxy(tmp_path, upstream=imds.url, read_timeout=60) as process,
        socket.create_connection(("127.0.0.1", process.port)) as client,
    ):
        client.sendall(f"GET {INSTANCE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        wait_until(lambda: len(emulator.arrivals) == 2)
        process.signal(signal.SIGINT)
        wait_until(lambda: refuses(process.port))
        process.signal(signal.SIGINT)
        assert process.process.wait(5) in {0, 130}
        assert "Traceback" not in process.log


@posix_signals
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGHUP, None)])
def test_signal_is_handled_from_the_listening_line_on(number: int, expected: int | None) -> None:
    """A supervisor or a script takes that line for the start; several at once, since the moment is short."""

    def started() -> subprocess.Popen[str] | forkserver.ForkedProcess:
        if forkserver.AVAILABLE:
            start = forkserver.of_proxies().start
            return start("imdsproxy.__main__", env=environment(port=0), stderr=subprocess.PIPE)
        command = [sys.executable, "-m", "imdsproxy"]
        return subprocess.Popen(command, env=environment(port=0), cwd=ROOT, stderr=subprocess.PIPE, text=True)

    with contextlib.ExitStack() as stack:
        processes = [started() for _ in range(4)]
        for process in processes:
            stack.callback(process.wait, 60)
            stack.callback(process.kill)
            assert process.stderr is not None
            stack.enter_context(process.stderr)
        for process in processes:
            assert process.stderr is not None
            assert " listening " in process.stderr.readline()
            process.send_signal(number)
        for process in processes:
            if expected is None:  # it is still there to be ended
                assert process.stderr is not None
                while (line := process.stderr.readline()) and "cache emptied" not in line:
                    pass
                process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0


# --- failed starts


def test_taken_port_is_reported_in_one_line(proxy: ProxyProcess) -> None:
    assert_one_line(ended(port=proxy.port), f"IMDSPROXY_PORT={proxy.port}", "another imdsproxy")
    assert get(proxy.port, "/-/healthy", {}).status == 200


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ([], {"port": "abc"}, ["IMDSPROXY_PORT"]),
        (["--port", "abc"], {"port": 0}, ["--port"]),
        (["--prot", "0"], {}, ["--prot", "--port"]),
        ([], {"prot": 1}, ["IMDSPROXY_PROT", "IMDSPROXY_PORT"]),
        ([], {"upstream": "https://169.254.169.254"}, ["IMDSPROXY_UPSTREAM", "plain HTTP"]),
        ([], {"upstream": "http://no-such-host.invalid"}, ["IMDSPROXY_UPSTREAM", "cannot be resolved"]),
        ([], {"host": "no-such-host.invalid"}, ["IMDSPROXY_HOST"]),
        ([], {"host": "192.0.2.1"}, ["192.0.2.1"]),
        ([], {"warmup": "/metadata/scheduledevents?api-version=2020-07-01"}, ["IMDSPROXY_WARMUP"]),
        ([], {"warmup": "/metadata/instance?a=1&A=2"}, ["IMDSPROXY_WARMUP"]),
        ([], {"config_file": "no-such-file.toml"}, ["IMDSPROXY_CONFIG_FILE", "no-such-file.toml"]),
        ([], {"config_file": "tests"}, ["IMDSPROXY_CONFIG_FILE"]),
        ([], {"config_file": "README.md"}, ["IMDSPROXY_CONFIG_FILE"]),
    ],
    ids=str,
)
def test_start_error_is_reported_in_one_line(arguments: list[str], settings: dict[str, Any], words: list[str]) -> None:
    assert_one_line(ended(*arguments, **{"port": 0, **settings}), *words)


@pytest.mark.parametrize(
    ("host", "upstream"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "localhost"),
        ("::1", "[::1]"),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
    ],
)
def test_upstream_that_is_the_proxy_itself_is_reported_in_one_line(host: str, upstream: str) -> None:
    port = free_port()
    assert_one_line(ended(host=host, port=port, upstream=f"http://{upstream}:{port}"), "IMDSPROXY_UPSTREAM", "listens")


def test_upstream_that_is_the_admin_listener_is_reported_in_one_line() -> None:
    port = free_port()
    told = ended(port=0, admin_host="127.0.0.2", admin_port=port, upstream=f"http://127.0.0.2:{port}")
    assert_one_line(told, "IMDSPROXY_UPSTREAM", "address of this proxy itself")


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_upstream_on_the_same_port_of_another_address_is_served(
    imds: EmulatorServer, tmp_path: Path, host: str
) -> None:
    _need_loopback_for(host)
    with running(tmp_path, host=host, port=imds.port, upstream=imds.url) as command:
        command.found(r"listening address=http://(\S+)")
        _assert_serves(host, imds.port)
        assert command.end() == 0


def test_two_proxies_upstream_of_each_other_report_the_loop(tmp_path: Path) -> None:
    one, two = free_port(), free_port()
    with (
        running_proxy(tmp_path, ready=False, port=one, upstream=f"http://127.0.0.1:{two}", retry_max=0) as first,
        running_proxy(tmp_path, ready=False, port=two, upstream=f"http://127.0.0.1:{one}", retry_max=0),
    ):
        answer = get(one, INSTANCE)
        assert answer.status == 508
        assert list(json.loads(answer.body)) == ["error", "error_description"]
        wait_for_log(first, "leads back to this proxy itself")
        assert get(one, LEAF).status == 508
        assert wait_for_log(first, "leads back to this proxy itself") == 1, "once a minute"
        assert get(one, "/-/ready", {}).status == 503


# --- sources of settings, and listeners


def test_flag_overrides_environment_overrides_file(imds: EmulatorServer, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        f'upstream = "{imds.url}"\nport = 1\nlog_format = "text"\nlog_level = "error"\nbudget_requests = 1000\n'
        '[ttl]\n"/metadata/instance" = 500\n',
        encoding="utf-8",
    )
    arguments = ("serve", "--port", "0", "--config-file", str(file))
    settings = environment(log_format="json", log_level="info")
    del settings["IMDSPROXY_UPSTREAM"]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "imdsproxy", *arguments], env=settings, stderr=stderr)
    try:
        command = Command(process, tmp_path / "settings.toml", log)
        listening = json.loads(command.found(r'(?m)^(\{.*"listening".*)$'))
        assert listening["upstream"] == imds.url
        answer = get(int(listening["address"].rpartition(":")[2]), INSTANCE)
        assert re.search(r"ttl=(500|49\d)", answer.headers["cache-status"])
        assert command.end() == 0
    finally:
        process.kill()
        process.wait(60)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("localhost", None), ("0.0.0.0", "0.0.0.0"), ("::1", "[::1]")],
)
def test_port_zero_picks_and_reports_a_free_port(
    imds: EmulatorServer, tmp_path: Path, host: str, shown: str | None
) -> None:
    _need_loopback_for(host)
    with running(tmp_path, host=host, port=0, upstream=imds.url) as command:
        address = command.found(r"listening address=http://(\S+)")
        name, _, port = address.rpartition(":")
        assert shown in {None, name}
        assert int(port) > 0
        reached = {"[::1]": "::1", "0.0.0.0": "127.0.0.1"}.get(name, name)
        _assert_serves(reached, int(port))
        assert command.end() == 0
        assert command.out == ""


def _need_loopback_for(host: str) -> None:
    """Skip where the host is an IPv6 address, and the machine has no IPv6 loopback."""
    if ":" in host:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")


def _assert_serves(host: str, port: int) -> None:
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=15)) as connection:
        connection.request("GET", VERSIONS, headers=METADATA)
        assert connection.getresponse().read().startswith(b'{"apiVersions"')


class UnixServer:
    """A server on a Unix socket that answers every GET with the target it was asked for."""

    def __init__(self, path: Path) -> None:
        self.heads: list[bytes] = []
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._stop = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread.start()
        wait_until(path.exists)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        async with await asyncio.start_unix_server(self._answer, self._path):
            await self._stop.wait()
            for writer in self._writers:
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                body = json.dumps({"apiVersions": [], "compute": head.split()[1].decode()}).encode()
                fields = b"Server: IMDS/1\r\nContent-Type: application/json\r\nContent-Length: %d" % len(body)
                writer.write(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n\r\n" + body)
        self._writers.discard(writer)
        writer.close()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Python has no Unix sockets here")
def test_upstream_can_be_a_unix_socket(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    path = tmp_path_factory.mktemp("s") / "imds.sock"  # such a path must be short
    server = UnixServer(path)
    try:
        with running_proxy(tmp_path, upstream=f"unix:{path}") as process:
            for hit in (False, True):
                answer = get(process.port, INSTANCE)
                assert (answer.status, is_hit(answer)) == (200, hit)
                assert json.loads(answer.body)["compute"] == INSTANCE
            wait_for_log(process, f"unix:{path}")
        assert [head.split()[1].decode() for head in server.heads] == [VERSIONS, INSTANCE]
        assert all(b"\r\nmetadata: true\r\n" in head.lower() for head in server.heads)
    finally:
        server.close()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Python has no Unix sockets here")
def test_missing_upstream_socket_is_reported(tmp_path: Path) -> None:
    with running_proxy(tmp_path, ready=False, upstream=f"unix:{tmp_path}/nothing", retry_max=0) as process:
        answer = get(process.port, INSTANCE)
        assert answer.status == 502
        assert f"unix:{tmp_path}/nothing" in json.loads(answer.body)["error_description"]
        assert "Traceback" not in process.log


# --- the log


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_access_log_has_one_line_a_request_without_its_query(
    imds: EmulatorServer, tmp_path: Path, log_format: str
) -> None:
    with running_proxy(
        tmp_path,
        upstream=imds.url,
        log_format=log_format,
        access_log="true",
        budget_requests=1000,
        retry_max=0,
    ) as process:
        imds.emulator.faults.add(Fault(path="/metadata/attested", status=500, times=1))
        requests = [
            (INSTANCE, 200, "miss", "instance"),
            (INSTANCE, 200, "hit", "instance"),
            (TOKEN, 200, "miss", "token"),
            ("/metadata/attested/document?api-version=2021-02-01", 500, "error", "attested"),
            ("/metadata/unknown?secret=1", 404, "bypass", "other"),
            ("/elsewhere?secret=2", 404, "refused", "none"),
            ("/metadata/instance?a=secret&A=3", 400, "refused", "none"),
        ]
        for target, status, _, _ in requests:
            assert get(process.port, target).status == status
        for page in ("/-/healthy", "/-/ready", "/-/metrics"):
            get(process.port, page)
        wait_for_log(process, "imdsproxy.access", times=len(requests))
        log = process.log
    assert "?" not in log
    for word in ("api-version", "vault.azure.net", "secret", "eyJ"):
        assert word not in log
    lines = [read_line(line, log_format) for line in log.splitlines()]
    assert {line["level"] for line in lines} == {"info", "warning"}, "IMDS's failure is a warning"
    found = [
        (line["method"], line["path"], int(line["status"]), line["outcome"], line["endpoint"])
        for line in lines
        if line["logger"] == "imdsproxy.access"
    ]
    assert found == [
        ("GET", target.partition("?")[0], status, outcome, endpoint) for target, status, outcome, endpoint in requests
    ]
    clients = {line["client"].strip('"').partition(" (")[0] for line in lines if line["logger"] == "imdsproxy.access"}
    assert clients == {f"user {os.getuid()}" if sys.platform == "linux" else "127.0.0.1"}


def read_line(line: str, log_format: str) -> Mapping[str, Any]:
    if log_format == "json":
        entry = json.loads(line)
        assert {"time", "level", "logger", "message"} <= entry.keys()
        return dict(entry)
    head = re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (?P<level>[a-z]+) (?P<logger>[a-z.]+) ", line)
    assert head is not None, line
    return {**head.groupdict(), **dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line))}


def test_requests_are_not_logged_by_default(proxy: ProxyProcess) -> None:
    def signalled(before: int) -> str:
        """Return the log after its first `before` characters. The line of the signal is the last one so far."""
        proxy.signal(signal.SIGHUP)
        wait_for_log(proxy, "cache emptied", after=before)
        return proxy.log[before:]

    before = len(signalled(0))  # lines of the start may still have been on their way
    assert get(proxy.port, INSTANCE).status == 200
    assert get(proxy.port, "/elsewhere").status == 404
    (line,) = signalled(before).splitlines()
    assert "cache emptied" in line


# --- under another server


def test_uvicorn_can_serve_the_same_application(imds: EmulatorServer, tmp_path: Path) -> None:
    arguments = ("--factory", "imdsproxy.app:create_app", "--host", "127.0.0.1", "--port", "0")
    bare = ("--no-server-header", "--no-date-header", "--no-access-log")
    first = len(imds.emulator.arrivals)
    with running(tmp_path, *arguments, *bare, module="uvicorn", upstream=imds.url, budget_requests=1000) as command:
        port = int(command.found(r"running on http://127\.0\.0\.1:(\d+)"))
        wait_until(lambda: obstacle(port) == "")
        targets = [
            INSTANCE,
            TOKEN.replace("https://", "https%3A%2F%2F"),
            "/Metadata/%69nstance/Compute/?api-version=2021-02-01",
            "/metadata/unknown?x=%C3%A9&&y",
        ]
        for target in targets:
            real, answer = get(imds.port, target), get(port, target)
            assert answer.status == real.status
            assert answer.headers["server"] == real.headers["server"] == "IMDS/150.870.65.1854"
            assert answer.headers["content-type"] == real.headers["content-type"]
            assert is_hit(get(port, target)) == (answer.status == 200)
        # Each was asked for directly, then through the proxy, and the last, which is not kept, once more.
        asked = [arrival.target.decode() for arrival in imds.emulator.arrivals[first + 1 :]]
        sent = [read_target(target.encode()) for target in targets]  # the proxy sends the canonical spelling
        spelled = [target.raw.decode() for target in sent if isinstance(target, Target)]
        pairs = zip(targets, spelled, strict=True)
        assert asked == [*(spelling for pair in pairs for spelling in pair), spelled[-1]]
        assert get(port, TOKEN, {}).status == 400
        assert get(port, INSTANCE, {"Host": "evil.example"}).status == 403
        assert get(port, "/metadata/..%2fidentity").status == 400
        assert get(port, INSTANCE, method="HEAD").status == 405
        assert get(port, "/-/metrics").status == 200
        assert get(port, "/-/nothing").status == 404
        if sys.platform != "win32":
            assert command.end(signal.SIGINT) == 0
        assert "Traceback" not in command.log


def test_invalid_setting_under_uvicorn_is_reported_in_one_line() -> None:
    arguments = ("--factory", "imdsproxy.app:create_app", "--port", "0")
    result = ended(*arguments, module="uvicorn", max_wait="long")
    assert_one_line(result, "IMDSPROXY_MAX_WAIT", "long")


# --- the demo


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@dataclass
class Demo:
    """A running demo, and its emulator."""

    command: Command
    port: int
    emulator: int
    """The emulator's port."""
    pid: int
    """The emulator's process."""


@contextlib.contextmanager
def demo(folder: Path, *arguments: str, max_wait: float | None = None) -> Iterator[Demo]:
    """Run the demo on free ports until its last line, and yield it."""
    ports = ("--port", "0", "--emulator-port", "0")
    settings = {} if max_wait is None else {"max_wait": max_wait}
    with running(folder, "demo", *ports, *arguments, module="imdsproxy", **settings) as command:
        found = None
        try:
            place = r"http://127\.0\.0\.1:(\d+)"
            port = int(command.found(rf"imdsproxy      {place}\n"))
            found = Demo(
                command,
                port,
                int(command.found(rf"emulated IMDS  {place} ")),
                int(command.found(r"\(process (\d+)\)")),
            )
            command.found("(Ctrl-C stops both)")
            yield found
        finally:
            if command.process.poll() is None:
                command.end()
            if found is not None and not is_gone(found.pid):
                os.kill(found.pid, signal.SIGKILL)


@posix_signals
def test_demo_shows_commands_that_work(tmp_path: Path) -> None:
    with demo(tmp_path, "--no-tour") as shown:
        text = shown.command.out
        for line in (
            "curl -i -H Metadata:true",
            "Invoke-RestMethod -NoProxy -Headers",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST=",
        ):
            assert line in text
        assert "tour" not in text
        origin = f"http://127.0.0.1:{shown.port}"
        urls = re.findall(rf"""['"]({re.escape(origin)}/[^'"]+)['"]""", text)
        assert len(urls) == 3
        for url, hit in zip(urls, (False, False, True), strict=True):  # PowerShell's line asks what the first does
            answer = get(shown.port, url.removeprefix(origin))
            assert (answer.status, is_hit(answer)) == (200, hit)
        again = get(shown.port, INSTANCE)
        assert is_hit(again)
        assert int(again.headers["age"]) >= 0
        pages = [url.removeprefix(origin) for url in re.findall(rf"{re.escape(origin)}/-/\S+", text)]
        assert sorted(pages) == ["/-/metrics", "/-/status"]
        assert [get(shown.port, page).status for page in pages] == [200, 200]
        attested = json.loads(get(shown.port, "/metadata/attested/document?api-version=2021-02-01").body)
        assert COMMON_NAME.encode() in base64.b64decode(attested["signature"]), "it is signed by the emulator itself"
        assert shown.command.end(signal.SIGINT) == 0
        wait_until(lambda: is_gone(shown.pid))
        assert "Traceback" not in shown.command.log
        assert "the emulator has stopped" not in shown.command.log
        assert refuses(shown.emulator)


@posix_signals
def test_tour_of_the_demo_shows_what_was_counted(tmp_path: Path) -> None:
    with demo(tmp_path) as shown:
        lines = shown.command.out.partition("\n1  miss")[2].partition("\nSee what")[0].splitlines()
        assert max(map(len, shown.command.out.partition("\nAsk twice")[0].splitlines())) <= 100
        arrivals = json.loads(get(shown.emulator, "/-/arrivals").body)
        metrics = get(shown.port, "/-/metrics").body.decode()
        figures = [re.findall(r"Requests to IMDS: (\d+)", line) for line in lines]
        sent = [int(figure) for (figure,) in filter(None, figures)]
        # A miss, a hit, a crowd, a document that becomes stale, its 410, its renewal, and twelve more documents. On a
        # busy machine the proxy asks again while IMDS still answers 410.
        assert (sent[:4], sent[6:]) == ([1, 0, 1, 1], [12])
        assert min(sent[4:6]) >= 1
        requests, total, most = re.findall(r"\d+", lines[-1])
        assert int(total) == sum(sent) == len(arrivals) - 1, "the proxy's own request at its start is not the tour's"
        # The proxy has counted the same clients, and the same outcomes.
        counted: Counter[str] = Counter()
        for line in metrics.splitlines():
            if match := re.fullmatch(r'imdsproxy_requests_total{.*outcome="(\w+)"} (\S+)', line):
                counted[match[1]] += int(float(match[2]))
        told: Counter[str] = Counter()
        for count, word in re.findall(r"(\d+) (miss|hit|collapsed|stale)\b", "\n".join(lines)):
            told[word] += int(count)
        assert +counted == told
        assert sum(told.values()) == int(requests)
        assert (told["stale"], told["hit"] + told["collapsed"]) == (1, 40)
        # What the emulator shows is what the tour says of it.
        failed = sum(int(count) for count in re.findall(r"\((\d+) answered 410\)", "\n".join(lines)))
        assert [each["status"] for each in arrivals].count(410) == failed >= 1
        assert int(most) == most_in_a_second([each["at"] for each in arrivals[1:]])
        assert int(most) <= 5
        # The commands to try begin with a miss even so, and the page says which settings are the demo's.
        assert not is_hit(get(shown.port, INSTANCE))
        settings = json.loads(get(shown.port, "/-/status.json").body)["proxy"]["settings"]
        sources = {setting["name"]: (setting["value"], setting["source"]) for setting in settings}
        assert sources["IMDSPROXY_TTL"] == ("/metadata/loadbalancer=0.2", "the demo")
        assert sources["IMDSPROXY_MAX_WAIT"] == ("30", "the demo")
        assert shown.command.end() == 0
        assert "Traceback" not in shown.command.log


@posix_signals
def test_demo_keeps_the_users_settings(tmp_path: Path) -> None:
    with demo(tmp_path, "--no-tour", "--ttl", "/metadata/versions=5", max_wait=7) as shown:
        settings = json.loads(get(shown.port, "/-/status.json").body)["proxy"]["settings"]
        values = {setting["name"]: setting["value"] for setting in settings}
        assert (values["IMDSPROXY_MAX_WAIT"], values["IMDSPROXY_TTL"]) == ("7", "/metadata/versions=5")
        assert "at most 7 s" in shown.command.out


@posix_signals
def test_tour_that_cannot_go_on_says_why_and_the_demo_stays(tmp_path: Path) -> None:
    with demo(tmp_path, "--deny", "/metadata/loadbalancer") as shown:
        assert "403 (denied)" in shown.command.out
        assert "The tour has ended early: the proxy does not repeat its request." in shown.command.out
        assert get(shown.port, INSTANCE).status == 200


@posix_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_demo_ends_during_its_tour(tmp_path: Path, number: int) -> None:
    with running(tmp_path, "demo", "--port", "0", "--emulator-port", "0") as command:
        pid = int(command.found(r"\(process (\d+)\)"))
        command.found("(3  crowd)")
        assert command.end(number) == 0
        wait_until(lambda: is_gone(pid))
        assert "Traceback" not in command.log
        assert "ended early" not in command.out
        assert "Ctrl-C stops both" not in command.out


@posix_signals
def test_demo_continues_without_its_emulator(tmp_path: Path) -> None:
    with demo(tmp_path, "--no-tour") as shown:
        wait_until(lambda: obstacle(shown.port) == "")
        assert get(shown.port, INSTANCE).status == 200
        os.kill(shown.pid, signal.SIGTERM)
        wait_for_log(shown.command, "the emulator has stopped; cached answers are still served")
        assert refuses(shown.emulator)
        answer = get(shown.port, INSTANCE)
        assert (answer.status, is_hit(answer)) == (200, True)
        assert shown.command.end(signal.SIGTERM) == 0
        assert "Traceback" not in shown.command.log


@posix_signals
@pytest.mark.parametrize(("taken", "other"), [("--emulator-port", "--port"), ("--port", "--emulator-port")])
def test_demo_reports_a_taken_port_in_one_line(taken: str, other: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port, unoccupied = str(occupied.getsockname()[1]), free_port()
        assert_one_line(ended("demo", taken, port, other, str(unoccupied)), port)
    assert refuses(unoccupied), "its emulator went with it"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the emulator again by way of /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_demo_ended_during_its_start_leaves_no_emulator(tmp_path: Path, number: int) -> None:
    port = free_port()
    with running(tmp_path, "demo", "--port", "0", "--emulator-port", str(port)) as command:
        wait_until(lambda: not refuses(port))
        children = _children(command.process.pid)
        command.end(number)
        assert "Traceback" not in command.log
    assert children
    try:
        # The child that reads the settings may take a moment longer.
        wait_until(lambda: all(map(is_gone, children)))
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text(encoding="utf-8").rpartition(") ")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def test_demo_reports_an_invalid_setting() -> None:
    assert_one_line(ended("demo", "--emulator-port", "0", "--max-wait", "long"), "IMDSPROXY_MAX_WAIT")
    for port in ("65536", "http", "-1"):
        assert_one_line(ended("demo", f"--emulator-port={port}"), "--emulator-port", port)


# --- last, because it has waited in the background


@posix_signals
def test_request_that_outlasts_shutdown_gets_the_proxys_answer(farewell: Callable[[], Farewell]) -> None:
    found = farewell()
    assert found.status == 0
    assert found.answer.status in {500, 502, 503, 504}
    assert found.answer.headers.get("cache-status", "").startswith("imdsproxy; detail=")
    assert list(json.loads(found.answer.body)) == ["error", "error_description"]
    assert "Traceback" not in found.log
