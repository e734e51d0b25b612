"""What the probes make of what the machine and the proxy say."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imdsproxy.cli.check.facts import Listener, Place, Process, Reach, Route
from imdsproxy.cli.check.probes import network
from imdsproxy.cli.check.probes.asking import Asker, Pace
from imdsproxy.cli.check.probes.places import look_at_places
from imdsproxy.cli.check.probes.processes import look_at_processes
from imdsproxy.cli.check.probes.questions import Answers, ask_questions
from imdsproxy.cli.check.probes.running_proxy import addresses, running_proxy
from imdsproxy.cli.check.probes.windows_tables import read_addresses, read_row
from imdsproxy.cli.check.ruleset import Redirect
from imdsproxy.cli.proc_net_tcp import Row
from imdsproxy.clock import SystemClock
from imdsproxy.config import Config
from imdsproxy.ops.metrics import Metrics
from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.protocol.messages import BudgetClass
from imdsproxy.records import UpstreamAttempt

OK = b"HTTP/1.1 200 OK\r\nServer: IMDS/1\r\nContent-Length: 2\r\n\r\n{}"
BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
TOKEN = b'HTTP/1.1 200 OK\r\n\r\n{"access_token":"secret","expires_in":"86317"}'


class StoppedClock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 7.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@contextmanager
def answering(*answers: bytes | None) -> Iterator[tuple[Address, list[str]]]:
    """Answer one connection after the other, None by closing it; yields where, and the requests that came."""
    requests: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    requests.append(connection.recv(65536).decode())
                    if answer is not None:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Address("127.0.0.1", server.getsockname()[1]), requests
        thread.join(10)


def asker(address: Address, pace: Pace | None = None, patience: float = 10.0) -> Asker:
    return Asker(address, "them", proxied=False, patience=patience, pace=pace or Pace(SystemClock()))


def test_answer_has_status_fields_and_body() -> None:
    with answering(OK) as (address, requests):
        got = asker(address).ask("/metadata/versions", Metadata="true", X_Forwarded_For="192.0.2.1")
    assert (got.status, got.header("server"), got.body, got.trouble) == (200, "IMDS/1", "{}", "")
    head, *fields = requests[0].split("\r\n")
    assert head == "GET /metadata/versions HTTP/1.1"
    assert {"Metadata: true", "X-Forwarded-For: 192.0.2.1", f"Host: {address.authority}"} <= set(fields)


def test_long_body_is_cut() -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000) as (address, _):
        assert len(asker(address).ask("/").body) == 4096


@pytest.mark.parametrize("answer", [None, b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
def test_incomplete_answer_is_broken(answer: bytes | None) -> None:
    with answering(answer) as (address, _):
        got = asker(address).ask("/")
    assert (got.status, got.trouble) == (None, "broken")
    assert got.words


def test_port_without_listener_refuses() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        got = asker(Address("127.0.0.1", unused.getsockname()[1])).ask("/")
    assert (got.status, got.trouble) == (None, "refused")


def test_silence_ends_with_the_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        got = asker(Address("127.0.0.1", server.getsockname()[1]), patience=0.05).ask("/")
    assert (got.status, got.trouble) == (None, "timeout")


@pytest.mark.parametrize(
    ("number", "trouble"),
    [
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.EPERM, "denied"),
        (errno.ECONNRESET, "broken"),
        (errno.ETIMEDOUT, "timeout"),
        (errno.ENOENT, "refused"),
    ],
)
def test_errors_of_the_system_are_named(monkeypatch: pytest.MonkeyPatch, number: int, trouble: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "create_connection", fail)
    got = asker(Address("10.0.0.1")).ask("/")
    assert (got.trouble, got.words) == (trouble, os.strerror(number))


def test_unix_socket_is_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert asker(Address("localhost", unix=path)).ask("/").trouble == "refused"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(OK)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert asker(Address("localhost", unix=path)).ask("/").status == 200
        thread.join(10)


def test_requests_are_a_second_apart() -> None:
    clock = StoppedClock()
    with answering(OK, OK, OK) as (address, _):
        one = asker(address, Pace(clock, clock.sleep))
        for _ in range(3):
            one.ask("/")
        clock.now += 0.25
        one.pace.wait()
        clock.now += 5
        one.pace.wait()
    assert clock.slept == [0, 1, 1, 0.75, 0]


def test_proxy_is_asked_without_a_pause() -> None:
    clock = StoppedClock()
    with answering(OK, OK) as (address, _):
        one = Asker(address, "the proxy", proxied=True, patience=10, pace=Pace(clock, clock.sleep))
        assert [one.ask("/").status for _ in range(2)] == [200, 200]
    assert clock.slept == []


def ask(
    config: Config, proxy: Address | None, identity: str | None = None, redirect: Redirect | None = None
) -> Answers:
    clock = StoppedClock()
    return ask_questions(config, proxy, identity, redirect, Pace(clock, clock.sleep))


def test_upstream_is_asked_three_times_where_no_proxy_runs() -> None:
    with answering(OK, BAD, BAD) as (address, requests):
        got = ask(Config(upstream=address), None)
    assert got.without_metadata is not None
    assert got.forwarded is not None
    assert (got.versions.status, got.without_metadata.status, got.forwarded.status) == (200, 400, 400)
    assert (got.redirected, got.token, got.versions.proxied) == (None, None, False)
    first, second, third = requests
    assert "Metadata: true" in first
    # The upstream may be another proxy.
    assert "no-cache" in first
    assert "Metadata: true" not in second
    assert "X-Forwarded-For" in third


def test_proxy_is_asked_to_renew_the_versions() -> None:
    with answering(OK, BAD, BAD) as (address, requests):
        got = ask(Config(), address)
    assert got.versions.proxied
    assert got.versions.asked == f"the proxy at {address}"
    assert "Cache-Control: no-cache" in requests[0]
    assert all("Host: " + address.authority in request for request in requests)


def test_nothing_more_is_asked_where_nothing_answers() -> None:
    with answering(None) as (address, requests):
        got = ask(Config(upstream=address), None, "")
    assert len(requests) == 1
    assert (got.without_metadata, got.forwarded) == (None, None)
    assert got.token is not None
    assert got.token.exchange.status is None


def test_proxy_that_adds_the_header_everywhere_is_not_asked_without_it() -> None:
    with answering(OK, BAD) as (address, requests):
        got = ask(Config(require_metadata_header="never"), address)
    assert got.without_metadata is None
    assert all("Metadata: true" in request for request in requests)


@pytest.mark.parametrize(("identity", "named"), [("", ""), ("a&b", "&client_id=a%26b"), ("\udcff", "&client_id=%FF")])
def test_token_is_asked_for_and_not_kept(identity: str, named: str) -> None:
    with answering(OK, BAD, BAD, TOKEN) as (address, requests):
        got = ask(Config(upstream=address), None, identity)
    assert got.token is not None
    assert got.token.expires_in == 86317
    assert "secret" not in repr(got) + got.token.exchange.body
    assert requests[3].split()[1].endswith(f"management.azure.com%2F{named}")


@pytest.mark.parametrize(
    "answer", [BAD, OK, b"HTTP/1.1 200 OK\r\n\r\nnot JSON", b'HTTP/1.1 200 OK\r\n\r\n{"access_token":"a"}']
)
def test_answer_without_a_token_has_no_life(answer: bytes) -> None:
    with answering(OK, BAD, BAD, answer) as (address, _):
        got = ask(Config(upstream=address), None, "")
    assert got.token is not None
    assert got.token.expires_in is None


@pytest.mark.parametrize(
    ("upstream", "redirect", "asked"),
    [
        (IMDS, Redirect("127.0.0.1", 8254, "990"), True),
        (IMDS, Redirect(), False),
        (IMDS, None, False),
        (Address("127.0.0.1", 8255), Redirect("127.0.0.1", 8254, "990"), False),
    ],
)
def test_imds_itself_is_asked_only_behind_a_redirect_for_it(
    monkeypatch: pytest.MonkeyPatch, upstream: Address, redirect: Redirect | None, asked: bool
) -> None:
    called: list[str] = []

    def refuse(address: tuple[str, int], _timeout: float) -> None:
        called.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    got = ask(Config(upstream=upstream), Address("127.0.0.1", 8254), redirect=redirect)
    assert (got.redirected is not None) == asked
    assert called == (["127.0.0.1", "169.254.169.254"] if asked else ["127.0.0.1"])


def metrics_page() -> bytes:
    """Return the page of a proxy that has sent 12 requests to IMDS, for two endpoints, in 0.24 s."""
    metrics = Metrics()
    for endpoint in ("instance", "token") * 6:
        metrics.observe_attempt(UpstreamAttempt(endpoint, BudgetClass.GENERAL, 0.0, "200", 0.02))
    return b"HTTP/1.1 200 OK\r\n\r\n" + metrics.text()


METRICS = metrics_page()
SETTINGS = [{"name": "IMDSPROXY_DENY", "value": "/metadata/identity", "source": "flag --deny"}]
FAILURE = {"ago": 1.0, "status": "500", "words": "an error"}


def status_page(state: str, failure: object) -> bytes:
    imds = {"state": state, "last_failure": failure, "last_hour": {"200": 9, "429": 3}}
    about = {"obstacle": "IMDS has not answered yet", "settings": SETTINGS}
    return b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps({"schema": 1, "proxy": about, "imds": imds}).encode()


@pytest.mark.parametrize(
    ("state", "failure", "words"),
    [
        ("failing", FAILURE, "500: an error"),
        ("answering", FAILURE, ""),
        ("unknown", None, ""),
        ("throttling", None, ""),
    ],
)
def test_pages_of_the_proxy_are_read(state: str, failure: object, words: str) -> None:
    with answering(METRICS, status_page(state, failure)) as (address, _):
        found = running_proxy(address, Pace(SystemClock()))
    assert found is not None
    assert (found.url, found.obstacle, found.failure) == (str(address), "IMDS has not answered yet", words)
    assert (found.throttled, found.upstream_requests) == (3, 12)
    assert found.upstream_seconds == pytest.approx(0.24)
    assert found.settings == (("IMDSPROXY_DENY", "/metadata/identity"),)


@pytest.mark.parametrize(
    "page",
    [
        BAD,
        OK,
        b'HTTP/1.1 200 OK\r\n\r\n{"proxy": {}, "imds": 7}',
        b'HTTP/1.1 200 OK\r\n\r\n{"proxy": {"obstacle": null, "settings": null}, "imds": {"last_hour": null}}',
    ],
)
def test_status_page_of_another_shape_adds_nothing(page: bytes) -> None:
    with answering(METRICS, page) as (address, _):
        found = running_proxy(address, Pace(SystemClock()))
    assert found is not None
    assert (found.obstacle, found.failure, found.throttled, found.settings) == ("", "", 0, ())
    assert found.upstream_requests == 12


@pytest.mark.parametrize("page", [None, BAD, OK, b"HTTP/1.1 200 OK\r\n\r\nprocess_cpu_seconds_total 1"])
def test_another_server_is_no_proxy(page: bytes | None) -> None:
    with answering(page) as (address, _):
        assert running_proxy(address, Pace(SystemClock())) is None


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (Config(), ["http://127.0.0.1:8254"]),
        (Config(host="0.0.0.0", uds="/run/s"), ["unix:/run/s", "http://127.0.0.1:8254"]),
        (Config(host="::", port=80), ["http://[::1]"]),
        (Config(port=0), []),
    ],
)
def test_proxy_is_looked_for_where_clients_reach_it(config: Config, found: list[str]) -> None:
    assert list(map(str, addresses(config))) == found


def places(config: Config, *, ours: bool = False, rows: list[Row] | None = None) -> list[Listener]:
    unix = {} if config.uds is None else {f"{config.uds}.12ab": 8, f"{config.uds}.other": 7}
    owners = {7: (Process(42, 990, "imdsproxy"),), 8: (Process(43, 990, "other"),)}
    return list(look_at_places(config, lambda _: ours, rows or [], unix, lambda inode: owners.get(inode, ())))


def test_free_ports_are_free() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    found = places(Config(port=port, admin_port=0))
    assert [(each.setting, each.place) for each in found] == [("PORT", Place.FREE), ("ADMIN_PORT", Place.FREE)]


@pytest.mark.parametrize(("ours", "place"), [(True, Place.OURS), (False, Place.TAKEN)])
def test_taken_port_has_its_processes(ours: bool, place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        row = Row(("127.0.0.1", port), ("0.0.0.0", 0), "0A", 990, 7)
        (found,) = places(Config(port=port), ours=ours, rows=[row, row])
    assert (found.place, found.processes) == (place, (Process(42, 990, "imdsproxy"),))


def test_address_of_another_machine_is_unusable() -> None:
    (found,) = places(Config(host="192.0.2.1"))
    assert found.place is Place.UNUSABLE
    assert found.why


def test_unix_sockets_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "s"

    def found(*, ours: bool = False) -> Listener:
        return places(Config(port=0, uds=str(path)), ours=ours)[1]

    assert found().place is Place.FREE
    path.write_text("", encoding="ascii")
    assert (found().place, found().why) == (Place.UNUSABLE, "there is a file that is not a socket")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert found(ours=True).place is Place.OURS
        assert (found().place, found().processes) == (Place.TAKEN, (Process(43, 990, "other"),))
    assert (found().place, found().why) == (Place.FREE, "an ended process left it")


def test_missing_folder_of_a_socket_is_reported(tmp_path: Path) -> None:
    found = places(Config(port=0, uds=str(tmp_path / "none" / "s")))[1]
    assert (found.place, found.why) == (Place.UNUSABLE, "its folder does not exist")
    (tmp_path / "file").write_text("", encoding="ascii")
    assert places(Config(port=0, uds=str(tmp_path / "file" / "s")))[1].place is Place.UNUSABLE


def process(proc: Path, number: int, name: str, command: str = "", **files: str | Path) -> None:
    folder = proc / str(number)
    (folder / "fd").mkdir(parents=True)
    (folder / "comm").write_text(f"{name}\n", encoding="ascii")
    (folder / "cmdline").write_text(command, encoding="ascii")
    for descriptor, target in files.items():
        (folder / "fd" / descriptor).symlink_to(target)


def test_processes_are_known_by_name_socket_and_file(tmp_path: Path) -> None:
    budget = tmp_path / "budget"
    budget.write_text("", encoding="ascii")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "budget").write_text("", encoding="ascii")
    proc = tmp_path / "proc"
    process(proc, 100001, "imdsproxy", a="socket:[12345]", b=budget, c=budget, d="/dev/null")
    process(proc, 100002, "other", a=tmp_path / "elsewhere" / "budget", b="socket:[12345]", c="pipe:[1]")
    process(proc, 100003, "kubelet", "kubelet\0--node-labels=a=b,kubernetes.azure.com/ebpf-host-routing=true\0")
    process(proc, 100004, "kube-proxy")
    process(proc, 100005, "azure-proxy-age")
    (proc / "100006").mkdir()  # it has just ended
    (proc / "self").mkdir()
    seen = look_at_processes(budget, proc)
    user = os.getuid()
    assert sorted(seen.by_socket[12345], key=lambda each: each.number) == [
        Process(100001, user, "imdsproxy"),
        Process(100002, user, "other"),
    ]
    assert seen.by_file == [Process(100001, user, "imdsproxy")]
    assert (seen.kubelet, seen.kube_proxy, seen.ebpf_label) == (True, True, True)
    assert seen.agent == Process(100005, user, "azure-proxy-age")


def test_machine_without_these_processes_has_none(tmp_path: Path) -> None:
    process(tmp_path, 100001, "kubelet-of-another", a="budget")
    seen = look_at_processes(tmp_path / "no-file", tmp_path)
    assert (seen.by_file, seen.kubelet, seen.kube_proxy, seen.ebpf_label, seen.agent) == ([], False, False, False, None)
    assert look_at_processes(None, tmp_path / "none").by_socket == {}


def test_listening_unix_sockets_are_read() -> None:
    text = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/imdsproxy/a socket
0000000000000000: 00000003 00000000 00000000 0001 03 12346 /run/imdsproxy/a socket
0000000000000000: 00000002 00000000 00010000 0001 01 12347
"""
    assert network.read_unix_table(text) == {"/run/imdsproxy/a socket": 12345}


def test_callers_of_imds_are_users_of_open_connections() -> None:
    def row(user: int, remote: tuple[str, int], state: str = "01") -> Row:
        return Row(("10.0.0.4", 50000), remote, state, user, 1)

    imds = ("169.254.169.254", 80)
    rows = [row(33, imds), row(0, imds, "02"), row(990, imds), row(5, ("10.0.0.9", 80)), row(6, imds, "06")]
    assert network.callers(rows, {990}) == (0, 33)


@pytest.mark.parametrize(
    "upstream",
    [
        Address("localhost", unix="/run/s"),
        Address("127.0.0.1", 8255),
        Address("imds.example"),
        Address("2001:db8::1"),
        Address("10.0.0.9", unix="/run/s"),
    ],
)
def test_local_or_other_than_ipv4_upstream_needs_no_route(upstream: Address) -> None:
    assert network.look_at_routes(upstream).target == ""


@pytest.mark.parametrize(
    ("environment", "catches"),
    [
        ({}, False),
        ({"http_proxy": "http://10.0.0.9:3128"}, True),
        ({"http_proxy": "http://10.0.0.9:3128", "no_proxy": "localhost,169.254.169.254"}, False),
        ({"http_proxy": "http://10.0.0.9:3128", "no_proxy": "*"}, False),
        ({"http_proxy": "http://10.0.0.9:3128", "no_proxy": "example.com"}, True),
    ],
)
def test_web_proxies_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], catches: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxies, bypassed = network.web_proxies()
    assert (dict(proxies).get("http") is not None and not bypassed) == catches


def test_windows_tables_are_read() -> None:
    def packed(text: str) -> int:
        return int.from_bytes(socket.inet_aton(text), "little")

    table = struct.pack("<I", 2)
    table += struct.pack("<5IHH", packed("10.0.1.10"), 5, packed("255.255.255.0"), 1, 65535, 0, 0x0005)
    table += struct.pack("<5IHH", packed("169.254.1.156"), 9, packed("255.255.0.0"), 1, 65535, 0, 0x0001)
    addresses_here = list(read_addresses(table))
    assert addresses_here == [("10.0.1.10", 5, True), ("169.254.1.156", 9, False)]
    by_gateway = struct.pack("<14I", 0, 0, 0, packed("10.0.1.1"), 5, 4, *[0] * 8)
    assert read_row(by_gateway, addresses_here) == Route(Reach.ROUTED, "number 5", "10.0.1.10", "10.0.1.1", dhcp=True)
    on_link = struct.pack("<14I", 0, 0, 0, packed("169.254.1.156"), 9, 3, *[0] * 8)
    assert read_row(on_link, addresses_here) == Route(Reach.ROUTED, "number 9", "169.254.1.156", "", dhcp=False)
    unknown = struct.pack("<14I", 0, 0, 0, 0, 77, 3, *[0] * 8)
    assert read_row(unknown, addresses_here) == Route(Reach.ROUTED, "number 77")


if sys.platform == "linux":
    from imdsproxy.cli.check.probes.linux_route import read_answer, route_on_linux

    def message(kind: int, body: bytes) -> bytes:
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body

    @pytest.mark.parametrize(
        ("number", "reach"),
        [
            (errno.ENETUNREACH, Reach.NO_ROUTE),
            (errno.EINVAL, Reach.BLOCKED),
            (errno.EACCES, Reach.BLOCKED),
            (errno.EHOSTUNREACH, Reach.BLOCKED),
            (errno.EOPNOTSUPP, Reach.UNKNOWN),
        ],
    )
    def test_error_of_the_kernel_says_why_there_is_no_route(number: int, reach: Reach) -> None:
        assert read_answer(message(2, struct.pack("=i", -number)), str).reach is reach

    def test_answer_of_another_type_is_unknown() -> None:
        assert read_answer(message(3, b""), str).reach is Reach.UNKNOWN

    def test_attributes_after_a_broken_one_are_not_read() -> None:
        body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 2, 0, 1, 0) + struct.pack("=HH", 0, 4)
        assert read_answer(message(24, body), str) == Route(Reach.ROUTED)

    def test_loopback_is_local() -> None:
        found = route_on_linux("127.0.0.1")
        assert (found.reach, found.interface, found.source) == (Reach.LOCAL, "lo", "127.0.0.1")
