"""`imdsproxy status`, `purge` and `events` with a real proxy: by its port, admin listener and Unix socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.cli.check.probes.rules import Rules
from imdsproxy.cli.check.ruleset import Redirect, Ruleset
from imdsproxy.cli.main import main
from imdsproxy.cli.running import commands
from imdsproxy.cli.running.client import page_places
from imdsproxy.config import Config
from imdsproxy.emulator import EmulatorServer
from imdsproxy.ops.status_page import MOST_LIVE
from tests.kit import (
    ROOT,
    Answer,
    Arrivals,
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
from tests.servers import AnsweringServer, ok, read_head
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = [pytest.mark.process]

NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
linux = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")


@dataclass
class Running:
    """A proxy and the flags by which commands find it."""

    proxy: ProxyProcess
    port: dict[str, Any]
    admin: dict[str, Any]
    unix: dict[str, Any]

    def ways(self) -> dict[str, dict[str, Any]]:
        return {"port": self.port, "admin": self.admin, "unix": self.unix}


@pytest.fixture(scope="module")
def running(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("running")
    admin, path = free_port(), folder / "proxy.sock"
    with running_proxy(folder, upstream=imds.url, admin_port=admin, uds=path) as proxy:
        nowhere = free_port()
        yield Running(
            proxy,
            {"port": proxy.port},
            {"port": nowhere, "admin_port": admin},
            {"port": nowhere, "uds": path},
        )


@pytest.mark.parametrize("way", ["port", "admin", pytest.param("unix", marks=linux)])
def test_status_shows_the_running_proxy(running: Running, way: str) -> None:
    get(running.proxy.port, INSTANCE)
    done = ended("status", **running.ways()[way])
    assert (done.returncode, done.stderr) == (0, "")
    assert f", process {running.proxy.process.pid}, " in done.stdout
    assert "IMDS          answers, for " in done.stdout
    assert "/metadata/instance" in done.stdout


def test_status_as_json_is_the_document_and_the_redirect(running: Running) -> None:
    done = ended("status", "--json", **running.port)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    document = json.loads(line)
    assert document["schema"] == 1
    assert document["proxy"]["pid"] == running.proxy.process.pid
    assert document["redirect"]


def test_status_is_watched_until_it_is_interrupted(running: Running) -> None:
    command = [sys.executable, "-m", "imdsproxy", "status", "--json", "--watch"]
    with subprocess.Popen(
        command, env=environment(**running.port), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        first, second = (json.loads(watch.stdout.readline()) for _ in range(2))
        watch.send_signal(signal.SIGINT if sys.platform != "win32" else signal.SIGTERM)
        assert watch.wait(15) == 130
    assert second["proxy"]["uptime"] > first["proxy"]["uptime"]


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return its status and what it wrote."""
    code = main(list(arguments))
    return code, *capsys.readouterr()


@pytest.mark.parametrize("command", [("status",), ("events", "--once"), ("purge", "--admin-port={port}")])
@pytest.mark.parametrize("watch", [(), ("--watch",)], ids=["once", "watched"])
def test_command_reports_that_no_proxy_runs(
    command: tuple[str, ...], watch: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if command[0] == "purge" or "--once" in command:
        watch = ()
    port = free_port()
    words = [word.format(port=port) for word in command]
    code, output, complaint = called(capsys, *words, *watch, f"--port={port}")
    assert (code, output) == (3, "")
    assert f"imdsproxy: no imdsproxy answers (http://127.0.0.1:{port}: connection refused)" in complaint
    assert len(complaint.splitlines()) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ok(b"{}"), "is not imdsproxy of this version (status 200)"),
        (ok(b'{"schema":2}'), "is not imdsproxy of this version (status 200)"),
        (ok(b"hello"), "is not imdsproxy of this version (status 200)"),
        (ok(b'{"error":"not_found"}', status=b"404 Not Found"), "has no status; it is of an earlier version"),
        (b"hello\r\n\r\n", "what answers there does not speak HTTP"),
        (b"", "what answers there does not speak HTTP"),
    ],
    ids=["another", "a later one", "no JSON", "an earlier one", "no HTTP", "nothing"],
)
def test_status_reports_another_server(answer: bytes, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with CuttingServer(lambda _head: answer) as server:
        code, _, complaint = called(capsys, "status", f"--port={server.port}")
    assert code == 3
    assert words in complaint


def test_purge_reports_another_server(capsys: pytest.CaptureFixture[str]) -> None:
    with CuttingServer(lambda _head: ok(b"hello")) as server:
        code, _, complaint = called(capsys, "purge", f"--admin-port={server.port}")
    assert code == 3
    assert "is not imdsproxy (status 200)" in complaint


class CuttingServer(AnsweringServer):
    """An answering server that closes each connection after its answer."""

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            connection.sendall(self._answer(read_head(stream)))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """Return the pauses of a command that watches, which then take no time."""
    made = Pauses()
    monkeypatch.setattr(commands, "sleep", made)
    return made


class Pauses:
    """What happens in each pause; then the user interrupts."""

    def __init__(self) -> None:
        self.then: list[Callable[[], object]] = []
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if not self.then:
            raise KeyboardInterrupt
        self.then.pop(0)()


def test_watching_continues_while_the_proxy_is_gone(pauses: Pauses, capsys: pytest.CaptureFixture[str]) -> None:
    empty = b'{"DocumentIncarnation":1,"Events":[]}'
    freeze = b'{"DocumentIncarnation":2,"Events":[{"EventId":"a"}]}'
    answers = [ok(empty), b"", b"", ok(b'{"error":"x"}', status=b"502 Bad Gateway"), ok(freeze)]
    pauses.then = [lambda: None] * 4
    with CuttingServer(lambda _head: answers.pop(0)) as server:
        code, output, complaint = called(capsys, "events", f"--port={server.port}")
    assert (code, output) == (130, '{"DocumentIncarnation": 2, "EventId": "a"}\n')
    gone, refused = complaint.splitlines()
    assert gone.startswith("imdsproxy: no imdsproxy answers (")
    assert gone.endswith("; asking again")
    assert refused.endswith(" answered with status 502: x; asking again")
    assert pauses.seconds == [5.0] * 5


def test_watching_events_waits_for_imds(pauses: Pauses, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [ok(b"{}", status=b"504 Gateway Timeout"), ok(b'{"DocumentIncarnation":1,"Events":[{"EventId":"a"}]}')]
    pauses.then = [lambda: None]
    with CuttingServer(lambda _head: answers.pop(0)) as server:
        code, output, complaint = called(capsys, "events", "--watch", f"--port={server.port}")
    assert (code, output) == (130, '{"DocumentIncarnation": 1, "EventId": "a"}\n')
    assert "answered with status 504: no scheduled-events document; asking again" in complaint


@pytest.mark.parametrize("flags", [("--watch",), ("--watch", "--json")], ids=["text", "json"])
def test_status_is_watched_every_two_seconds(
    running: Running, flags: tuple[str, ...], pauses: Pauses, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses.then = [lambda: None]
    code, output, _ = called(capsys, "status", *flags, f"--port={running.proxy.port}")
    assert code == 130
    assert output.count(str(running.proxy.process.pid)) == 2
    assert "\x1b" not in output, "it is no terminal"
    assert pauses.seconds == [2.0, 2.0]


def test_command_ends_without_a_reader(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "show", lambda _text: False)
    port = f"--port={running.proxy.port}"
    assert main(["status", "--watch", port]) == 1
    assert main(["purge", f"--admin-port={running.admin['admin_port']}"]) == 1


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (Rules(words="Operation not permitted"), "unknown: Operation not permitted"),
        (Rules(Ruleset(None)), "not loaded"),
        (Rules(Ruleset(Redirect("127.0.0.1", 8254, "990"))), "loaded: to 127.0.0.1:8254, user 990 is exempt"),
        (
            Rules(Ruleset(Redirect("127.0.0.1", 8254, "", node=True))),
            "loaded: to 127.0.0.1:8254, user none is exempt, pods too",
        ),
    ],
)
def test_status_shows_the_redirect(
    running: Running, rules: Rules, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "look_at_rules", lambda: rules)
    _, output, _ = called(capsys, "status", f"--port={running.proxy.port}")
    assert f"redirect      {words}\n" in output


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"port": 1}, ["http://127.0.0.1:1"]),
        ({"host": "0.0.0.0", "port": 1}, ["http://127.0.0.1:1"]),
        ({"host": "::", "port": 1}, ["http://[::1]:1"]),
        ({"port": 0}, []),
        ({"port": 1, "uds": "/run/x", "admin_port": 2}, ["http://127.0.0.1:2", "unix:/run/x", "http://127.0.0.1:1"]),
        (
            {"host": "10.0.0.4", "port": 1, "admin_host": "127.0.0.2", "admin_port": 2},
            [
                "http://127.0.0.2:2",
                "http://10.0.0.4:1",
            ],
        ),
    ],
)
def test_places_are_tried_in_their_order(settings: dict[str, Any], names: list[str]) -> None:
    assert [place.name for place in page_places(Config(**settings))] == names


@linux
def test_commands_use_the_unix_socket(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name}={value}" for name, value in running.unix.items()]
    assert called(capsys, "status", *flags)[0] == 0
    assert called(capsys, "purge", "/metadata/versions", *flags)[0] == 0
    assert called(capsys, "events", "--once", *flags)[0] == 0


def test_purge_without_a_privileged_place_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, complaint = called(capsys, "purge", "--port=1")
    assert code == 2
    assert "IMDSPROXY_ADMIN_PORT or IMDSPROXY_UDS" in complaint


@linux
def test_missing_socket_is_reported_with_the_port(tmp_path: Path) -> None:
    port = free_port()
    done = ended("status", port=port, uds=tmp_path / "absent.sock")
    assert f"(unix:{tmp_path}/absent.sock: no such file or directory; http://127.0.0.1:{port}: " in done.stderr


@pytest.mark.parametrize("way", ["admin", pytest.param("unix", marks=linux)])
def test_purge_drops_a_path_and_what_is_below(running: Running, way: str) -> None:
    port, seen = running.proxy.port, len(running.proxy.log)
    for target in (INSTANCE, NAME, TOKEN):
        get(port, target)
    done = ended("purge", "/metadata/instance/compute", **running.ways()[way])
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 entry dropped\n", "")
    assert not is_hit(get(port, NAME))
    assert is_hit(get(port, INSTANCE))
    assert ended("purge", "/metadata/instance", **running.ways()[way]).stdout == "2 entries dropped\n"
    assert is_hit(get(port, TOKEN))
    done = ended("purge", **running.ways()[way])
    assert done.stdout.endswith(" dropped\n")
    assert not is_hit(get(port, TOKEN))
    wait_for_log(running.proxy, "cached entries purged path=/metadata entries=", after=seen)


def test_purge_over_the_port_is_refused_with_the_remedy(running: Running) -> None:
    done = ended("purge", **running.port)
    assert done.returncode == 2
    assert "IMDSPROXY_ADMIN_PORT or IMDSPROXY_UDS" in done.stderr
    answer = get(running.proxy.port, "/-/purge", method="POST")
    assert (answer.status, json.loads(answer.body)["error"]) == (403, "forbidden")


def test_purge_needs_the_header_and_a_path_under_metadata(running: Running) -> None:
    port = int(running.admin["admin_port"])
    before = get(running.proxy.port, INSTANCE)
    answers: list[Answer] = [
        get(port, "/-/purge", {}, method="POST"),
        get(port, "/-/purge?path=/etc", method="POST"),
        get(port, "/-/purge"),
        get(port, "/-/purge", {"Metadata": "true", "Origin": "http://127.0.0.1"}, method="POST"),
    ]
    assert [answer.status for answer in answers] == [400, 400, 405, 403]
    assert answers[2].headers["allow"] == "POST"
    assert is_hit(get(running.proxy.port, INSTANCE)), before
    done = ended("purge", "/etc", **running.admin)
    assert done.returncode == 2
    assert "A path begins with /metadata" in done.stderr


def test_events_are_printed_once_with_one_request_in_five_seconds(running: Running, imds: EmulatorServer) -> None:
    events = imds.emulator.events
    first = events.add("Freeze")
    arrived, began = Arrivals(imds, EVENTS), time.monotonic()
    command = [sys.executable, "-m", "imdsproxy", "events"]
    with subprocess.Popen(
        command, env=environment(**running.port), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        line = json.loads(watching.stdout.readline())
        assert (line["EventId"], line["EventType"]) == (first, "Freeze")
        second = events.add("Reboot")
        assert json.loads(watching.stdout.readline())["EventId"] == second
        events.clear()
        gone = [json.loads(watching.stdout.readline()) for _ in range(2)]
        assert {(each["EventId"], each["EventStatus"]) for each in gone} == {(first, "Gone"), (second, "Gone")}
        watching.terminate()
        watching.wait(15)
    assert len(arrived()) <= 1 + (time.monotonic() - began) / 5


def test_pending_events_are_printed_once_and_are_a_gauge(running: Running, imds: EmulatorServer) -> None:
    name = imds.emulator.events.add("Preempt")
    wait_until(lambda: name.encode() in get(running.proxy.port, EVENTS).body)  # the answer before is fresh for a second
    try:
        done = ended("events", "--once", **running.port)
        assert (done.returncode, done.stderr) == (0, "")
        assert [json.loads(line)["EventId"] for line in done.stdout.splitlines()] == [name]
        text = get(running.proxy.port, "/-/metrics").body.decode()
        assert 'imdsproxy_scheduled_events{type="Preempt"} 1.0' in text
        assert 'imdsproxy_scheduled_events{type="Freeze"} 0.0' in text
    finally:
        imds.emulator.events.clear()


def test_unavailable_events_are_reported_with_an_exit_status(tmp_path: Path) -> None:
    body = b'{"error":"bad_gateway","error_description":"IMDS cannot be reached"}'
    with AnsweringServer(lambda _head: ok(body, status=b"502 Bad Gateway")) as server:
        done = ended("events", "--once", port=server.port)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"http://127.0.0.1:{server.port} answered with status 502: IMDS cannot be reached" in done.stderr


def test_status_page_is_complete_for_a_program_and_has_its_policy(running: Running) -> None:
    answer = get(running.proxy.port, "/-/status")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.body.endswith(b"</script><wbr>\n")
    assert get(running.proxy.port, "/-/status", method="HEAD").body == b""


LIVE_PAGE = b"GET /-/status HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nSec-Fetch-Site: none\r\n\r\n"


def opened(port: int) -> tuple[socket.socket, bool]:
    """Open the page as a browser does; return its connection, and whether it gets figures again."""
    browser = socket.create_connection(("127.0.0.1", port), timeout=30)
    browser.sendall(LIVE_PAGE)
    received = b""
    while b"<wbr>\n" not in received:
        received += browser.recv(65536)
    return browser, b"data-once" not in received.partition(b"<style>")[0]


def is_live(port: int) -> bool:
    browser, live = opened(port)
    browser.close()
    return live


def test_live_page_receives_figures_repeatedly(running: Running) -> None:
    browser, _ = opened(running.proxy.port)
    with browser:
        received = b""
        while b"<wbr>\n" not in received:
            received += browser.recv(65536)


def test_number_of_live_pages_is_bounded(running: Running) -> None:
    port = running.proxy.port
    browsers: list[socket.socket] = []

    def another_is_live() -> bool:
        browser, live = opened(port)
        if live:
            browsers.append(browser)
        else:  # the proxy notices within seconds that those before have closed theirs
            browser.close()
        return live

    for _ in range(MOST_LIVE):
        wait_until(another_is_live)
    assert not is_live(port)
    for browser in browsers:
        browser.close()
    wait_until(lambda: is_live(port))


def test_request_of_a_web_page_for_figures_is_refused(running: Running) -> None:
    for field in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}):
        assert get(running.proxy.port, "/-/status.json", field).status == 403
