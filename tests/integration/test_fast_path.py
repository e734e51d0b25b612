"""The fast path from outside: real processes, raw sockets, and repeated requests.

A known head gets the same answer as when it was new: every byte, every second, every closed connection. Most tests run
with the fast path and without it, so that one expectation holds for both.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from imdsproxy.emulator import EmulatorServer, Fault
from tests.kit import (
    ROOT,
    Answer,
    Arrivals,
    ProxyProcess,
    cache_status,
    environment,
    free_port,
    get,
    is_hit,
    unused,
    wait_for_log,
    wait_until,
)
from tests.size import size
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, sends signals")]

LEAF = "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"
LOAD_BALANCER = "/metadata/loadbalancer?api-version=2021-02-01"
HEADER_TIMEOUT = 0.5
KEEP_ALIVE = 0.8
MEBIBYTE = 1 << 20

# With long lifetimes, because a slow machine may take a minute for these tests.
SETTINGS = {"port": 0, "budget_requests": 1000, "retry_max": 0, "ttl": "/metadata/instance=600"}

# Alterations of `tests.altered`.
WITHOUT_FAST_PATH = "without_fast_path"
IMPATIENT = f"keep_alive={KEEP_ALIVE}"
PATIENT_SHUTDOWN = "first_bytes=9"
COUNTING = "counting"


@contextlib.contextmanager
def running(folder: Path, *alterations: str, **settings: object) -> Iterator[ProxyProcess]:
    """Run the proxy, ready and with an instance document, with these alterations."""
    log = folder / f"fast-path-{time.monotonic_ns()}.log"
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.altered", *alterations],
            env=environment(**{**SETTINGS, **settings}),
            cwd=ROOT,
            stderr=stderr,
            text=True,
        )
    try:
        wait_until(lambda: "listening" in log.read_text(encoding="utf-8") or process.poll() is not None)
        address = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text(encoding="utf-8"))
        assert address is not None, log.read_text(encoding="utf-8")
        proxy = ProxyProcess(process, log, int(address[1]))
        wait_until(lambda: get(proxy.port, "/-/ready").status == 200)
        yield proxy
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, proxy.log
        assert "Traceback" not in proxy.log, proxy.log[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


class Client:
    """A connection on which raw bytes are sent, and whole messages read."""

    def __init__(self, where: int | Path, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET if isinstance(where, int) else socket.AF_UNIX)
        self.socket.settimeout(20)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if isinstance(where, int):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.connect(("127.0.0.1", where))
        else:
            self.socket.connect(str(where))
        self._stream = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        for piece in pieces:
            self.socket.sendall(piece)
            time.sleep(pause)

    def message(self) -> bytes:
        """Read one response; empty where the connection was closed before it began."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self._stream.readline()
            if not line:
                assert head == b"", f"cut off: {head!r}"
                return b""
            head += line
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
        body = self._stream.read(int(length[1])) if length else b""
        assert length is None or len(body) == int(length[1]), "cut off"
        return head + body

    def last_message(self) -> bytes:
        """Read one response of a proxy that may have closed before it had read all that was sent."""
        try:
            return self.message()
        except ConnectionError:
            return b""

    def ask(self, head: bytes) -> Answer:
        self.send(head)
        return read(self.message())

    def rest(self) -> bytes:
        """Read until the other side closes."""
        return self._stream.read()


def read(message: bytes) -> Answer:
    assert message, "closed without an answer"
    head, _, body = message.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    fields = (field.partition(":") for field in lines)
    return Answer(int(line.split()[1]), {name.lower(): value.strip() for name, _, value in fields}, body)


def head_of(target: str = INSTANCE, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = (f"{method} {target} HTTP/{version}", "Host: localhost", "Metadata: true", *fields)
    return "".join(line + "\r\n" for line in (*lines, "")).encode("latin-1")


def known(port: int | Path, target: str = INSTANCE) -> bytes:
    """Make a head known, and return it."""
    head = head_of(target)
    with Client(port) as client:
        for _ in range(4):
            answer = client.ask(head)
    assert is_hit(answer), answer
    return head


def rename(imds: EmulatorServer) -> str:
    """Change the name of the machine, so that a new document differs from an old one."""
    name = f"vm-{next(_numbers)}"
    imds.emulator.instance["compute"]["name"] = name
    return name


def name_in(answer: Answer) -> str:
    return str(json.loads(answer.body)["compute"]["name"])


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fast path")


@pytest.fixture(scope="module")
def socket_path(folder: Path) -> Path:
    return folder / "s"


@pytest.fixture(scope="module")
def admin_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def proxy(imds: EmulatorServer, folder: Path, socket_path: Path, admin_port: int) -> Iterator[ProxyProcess]:
    with running(
        folder, upstream=imds.url, uds=socket_path, admin_host="127.0.0.1", admin_port=admin_port, access_log="true"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def without_fast_path(imds: EmulatorServer, folder: Path) -> Iterator[ProxyProcess]:
    with running(folder, WITHOUT_FAST_PATH, upstream=imds.url) as process:
        yield process


@pytest.fixture(params=["fast path", "without fast path"])
def either(request: pytest.FixtureRequest) -> ProxyProcess:
    """Return the proxy with the fast path, and one without."""
    name = "proxy" if request.param == "fast path" else "without_fast_path"
    process = request.getfixturevalue(name)
    assert isinstance(process, ProxyProcess)
    return process


# --- known heads are used


def test_repeated_head_is_not_parsed_again(imds: EmulatorServer, tmp_path: Path) -> None:
    with running(tmp_path, COUNTING, upstream=imds.url) as process:
        head = head_of()
        with Client(process.port) as client:
            answers = [client.ask(head) for _ in range(50)]
        with Client(process.port) as client:
            answers += [client.ask(head) for _ in range(50)]
        assert [is_hit(answer) for answer in answers] == [False, *[True] * 99]
        process.signal(signal.SIGHUP)
        wait_for_log(process, "cache emptied")
        with Client(process.port) as client:
            answers = [client.ask(head) for _ in range(50)]
        assert [is_hit(answer) for answer in answers] == [False, *[True] * 49]
    # Each time: the miss, the first hit, and the second, after which it is known.
    counts = re.search(r"counted (\d+) (\d+)", process.log)
    assert counts is not None
    assert int(counts[2]) == 144
    assert int(counts[1]) < 6 + 50, "pages are read, too"


# --- the answer of each second


@dataclass
class Watched:
    """A target that is asked for again and again; when it was fetched, at the earliest and at the latest."""

    target: str
    life: float
    client: Client
    earliest: float
    latest: float
    ages: list[int]

    def look(self) -> None:
        head = head_of(self.target)
        before = time.monotonic()
        self.client.send(head)
        first = self.client.message()
        self.client.send(head_of(self.target, f"X-Number: {next(_numbers)}"))
        other = self.client.message()
        self.client.send(head)
        last = self.client.message()
        after = time.monotonic()
        if first == last:
            assert other == first, "a head that is not known is told the same"
        for message in (first, other, last):
            self._judge(read(message), before, after)

    def _judge(self, answer: Answer, before: float, after: float) -> None:
        assert is_hit(answer)
        least, most = max(0.0, before - self.latest), after - self.earliest
        self.ages.append(int(answer.headers["age"]))
        assert math.floor(least) <= self.ages[-1] <= math.floor(most)
        assert math.floor(self.life - most) <= int(cache_status(answer)["ttl"]) <= math.floor(self.life - least)


class WatchedToken(Watched):
    expires_in = 0
    """What was left of the token when it was asked for."""

    def _judge(self, answer: Answer, before: float, after: float) -> None:
        super()._judge(answer, before, after)
        least, most = max(0.0, before - self.latest), after - self.earliest
        left = int(json.loads(answer.body)["expires_in"])
        assert math.floor(self.expires_in - most) <= left <= math.floor(self.expires_in - least)


def watch(proxy: ProxyProcess, target: str, life: float) -> Watched:
    client = Client(proxy.port)
    earliest = time.monotonic()
    answer = client.ask(head_of(target))
    latest = time.monotonic()
    assert not is_hit(answer)
    if target.startswith(TOKEN):
        expires_in = int(json.loads(answer.body)["expires_in"])
        watched = WatchedToken(target, min(3600, expires_in / 2), client, earliest, latest, [])
        watched.expires_in = expires_in
        return watched
    return Watched(target, life, client, earliest, latest, [])


def test_repeated_answers_grow_older_second_by_second(proxy: ProxyProcess) -> None:
    """`Age` counts up; `ttl` and a token's `expires_in` count down. An unknown head gets the same figures."""
    lives = {INSTANCE: 600, LEAF: 600, LOAD_BALANCER: 30, TOKEN: 0, "/metadata/instance/no?api-version=2021-02-01": 5}
    with contextlib.ExitStack() as stack:
        watched = [watch(proxy, unused(target), life) for target, life in lives.items()]
        for one in watched:
            stack.enter_context(one.client)
        end = time.monotonic() + 2.3
        while time.monotonic() < end:
            for one in watched:
                one.look()
    for one in watched:
        assert one.ages == sorted(one.ages), one.target
        assert {1, 2} < set(one.ages) <= {0, 1, 2, 3}, one.target


def test_stale_entry_is_refreshed_in_the_background_under_constant_load(imds: EmulatorServer, tmp_path: Path) -> None:
    with running(tmp_path, upstream=imds.url, ttl="/metadata/instance=1") as process, Client(process.port) as client:
        arrivals, head = Arrivals(imds, "/metadata/instance"), head_of()
        answers = [client.ask(head)]
        # A refresh may begin a tenth of its second before it is stale, and is to end after that.
        imds.emulator.faults.add(Fault(path="/metadata/instance", latency=0.25, times=3))
        end = time.monotonic() + 15
        while len(arrivals()) < 4 and time.monotonic() < end:
            answers.append(client.ask(head))
            time.sleep(0.002)
        moments = [arrival.at for arrival in arrivals()]
        kinds = Counter((int(answer.headers["age"]), cache_status(answer).get("ttl")) for answer in answers[1:])
    assert len(moments) == 4, "it was renewed each time"
    # At the earliest a tenth of its second before it was stale, but for what the way there took.
    assert all(later - earlier > 0.8 for earlier, later in itertools.pairwise(moments))
    assert cache_status(answers[0])["fwd"] == "uri-miss"
    # Fresh within its second, stale beyond it; nothing that has had its second is called fresh.
    assert kinds[0, "0"] > kinds[1, "-1"] >= 3
    assert set(kinds) <= {(0, "0"), (1, "-1"), (2, "-2")}


def test_entry_without_stale_bound_is_fetched_again_each_second(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    arrivals, head = Arrivals(imds, "/metadata/scheduledevents"), head_of(EVENTS)
    with Client(proxy.port) as client:
        answers = []
        end = time.monotonic() + 15
        while len(arrivals()) < 3 and time.monotonic() < end:
            answers.append(client.ask(head))
            time.sleep(0.002)
        hits = [answer for answer in answers if is_hit(answer)]
        assert len(answers) - len(hits) == len(arrivals()) == 3
        assert {(answer.headers["age"], cache_status(answer)["ttl"]) for answer in hits} == {("0", "0")}
        moments = [arrival.at for arrival in arrivals()]
        assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(moments))
        # An approval by another client takes effect at once.
        client.ask(head)
        assert get(proxy.port, EVENTS, method="POST", body=b'{"StartRequests":[]}').status == 200
        assert not is_hit(client.ask(head))


def test_refresh_requested_by_another_client_is_in_the_next_answer(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    rename(imds)
    target = unused(INSTANCE)
    head = known(proxy.port, target)
    with Client(proxy.port) as client:
        old = client.ask(head)
        name = rename(imds)
        assert client.ask(head).body == old.body
        assert name_in(get(proxy.port, target, {"Metadata": "true", "Cache-Control": "no-cache"})) == name
        for _ in range(5):
            answer = client.ask(head)
            assert is_hit(answer)
            assert name_in(answer) == name
            assert int(answer.headers["age"]) <= 1


def test_new_token_requested_by_another_client_is_in_the_next_answer(proxy: ProxyProcess) -> None:
    target = unused(TOKEN)
    head = known(proxy.port, target)
    with Client(proxy.port) as client:
        old = json.loads(client.ask(head).body)["access_token"]
        new = json.loads(get(proxy.port, target + "&bypass_cache=true").body)["access_token"]
        assert new != old
        for _ in range(5):
            assert json.loads(client.ask(head).body)["access_token"] == new


def test_sighup_forgets_known_heads(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    rename(imds)
    target = unused(INSTANCE)
    head = known(proxy.port, target)
    arrivals = Arrivals(imds, target)
    with Client(proxy.port) as client:
        for turn in range(1, 4):
            name = rename(imds)
            assert is_hit(client.ask(head))
            emptied = proxy.log.count("cache emptied")
            proxy.signal(signal.SIGHUP)
            wait_until(lambda emptied=emptied: proxy.log.count("cache emptied") > emptied)
            answer = client.ask(head)
            assert not is_hit(answer)
            assert name_in(answer) == name
            assert len(arrivals()) == turn
            for _ in range(4):
                answer = client.ask(head)
                assert is_hit(answer)
                assert name_in(answer) == name


# --- on the wire


A, B = head_of(), head_of(LEAF)
PAGE = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = head_of(LEAF, "Connection: close")
REFUSED = head_of("/metadata/instance?api-version=2021-02-01&API-VERSION=2021-02-01")
BODY = head_of(INSTANCE, "Content-Length: 5") + b"hello"
NO_BODY = head_of(INSTANCE, "Content-Length: 0")
CHUNKED = head_of(INSTANCE, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"
EXPECT = head_of(INSTANCE, "Content-Length: 5", "Expect: 100-continue")
CLOSE = head_of(INSTANCE, "Connection: close")
OLD = head_of(INSTANCE, version="1.0")
OLD_STAYING = head_of(INSTANCE, "Connection: keep-alive", version="1.0")


@pytest.fixture
def bodies(either: ProxyProcess) -> dict[bytes, str]:
    """Return names for the bodies of the answers; the heads are known from then on."""
    found = {}
    for name, target in (("a", INSTANCE), ("b", LEAF)):
        with Client(either.port) as client:
            found[[client.ask(head_of(target)) for _ in range(4)][-1].body] = name
    return found


def heard(client: Client, count: int, bodies: dict[bytes, str]) -> list[str]:
    """Return the names of so many answers; of any other, its status."""
    answers = [read(client.message()) for _ in range(count)]
    return [bodies.get(answer.body) or str(answer.status) for answer in answers]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([A], "a"),
        ([A, A, A], "a a a"),
        ([A + A + A], "a a a"),
        ([A + B + A + B], "a b a b"),
        ([A, A[:20], A[20:], A], "a a a"),
        ([bytes([one]) for one in A], "a"),
        ([bytes([one]) for one in A + B], "a b"),
        ([A + A[:30], A[30:]], "a a"),
        ([A[:-1], A[-1:] + A[:-1], A[-1:]], "a a"),
        ([A[:-2], A[-2:] + A], "a a"),
        ([A + B[:30], B[30:] + A[:30], A[30:] + B], "a b a b"),
        ([b"\r\n" + A], "a"),
        ([b"\r\n", A], "a"),
        ([b"\r\n\r\n" + A + b"\r\n" + A], "a a"),
        ([A + b"\r\n", A], "a a"),
        ([A, b"\r\n", A], "a a"),
        ([A, b"\r\n" + A], "a a"),
        ([A + b"\r\n\r\n" + B], "a b"),
        ([PAGE + A], "200 a"),
        ([A + PAGE, A], "a 200 a"),
        ([A + REFUSED + A], "a 400 a"),
        ([REFUSED, A, REFUSED, A], "400 a 400 a"),
        ([BODY, A], "a a"),
        ([BODY + A], "a a"),
        ([BODY, BODY, BODY, A], "a a a a"),
        ([BODY[:-2], BODY[-2:] + A], "a a"),
        ([A + BODY + A], "a a a"),
        ([NO_BODY, NO_BODY, NO_BODY + A], "a a a a"),
        ([CHUNKED, CHUNKED, CHUNKED + A], "a a a a"),
        ([CHUNKED[:-3], CHUNKED[-3:] + A], "a a"),
    ],
)
def test_requests_in_any_pieces_are_answered_once_and_in_order(
    either: ProxyProcess, bodies: dict[bytes, str], pieces: list[bytes], expected: str
) -> None:
    for pause in (0.0, 0.001):
        with Client(either.port) as client:
            client.send(*pieces, pause=pause)
            assert heard(client, len(expected.split()), bodies) == expected.split()
            client.send(LAST)
            assert heard(client, 1, bodies) == ["b"]
            assert client.rest() == b""


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([CLOSE], "a"),
        ([CLOSE + A], "a"),
        ([A, CLOSE], "a a"),
        ([A + CLOSE + A], "a a"),
        ([A, A, CLOSE + B], "a a a"),
        ([head_of(INSTANCE, "connection: Close")], "a"),
        ([head_of(INSTANCE, "Connection: keep-alive, close")], "a"),
        ([OLD], "a"),
        ([A, OLD], "a a"),
        ([A + OLD + A], "a a"),
        ([OLD_STAYING], "a"),
        ([head_of(INSTANCE, "Connection: Upgrade", "Upgrade: h2c")], "a"),
        ([A, head_of(INSTANCE, "Connection: Upgrade", "Upgrade: websocket") + A], "a a"),
    ],
)
def test_connection_close_is_honoured_each_time(
    either: ProxyProcess, bodies: dict[bytes, str], pieces: list[bytes], expected: str
) -> None:
    for pause in (0.0, 0.0, 0.001):
        with Client(either.port) as client:
            with contextlib.suppress(ConnectionError):
                client.send(*pieces, pause=pause)
            assert heard(client, len(expected.split()), bodies) == expected.split()
            assert client.last_message() == b""


UNREADABLE = {
    "no letter": b"\x00",
    "no letter before it": b"\x00" + A,
    "words": b"garbage\r\n\r\n",
    "bare line feeds": A.replace(b"\r\n", b"\n"),
    "a bare end and another head": A[:-4] + b"\n\n" + A,
    "an end that is half bare": A[:-4] + b"\n\r\n",
    "a bare carriage return": A[:-4] + b"\r\r\n\r\n",
    "a space before a field": A.replace(b"Host", b" Host"),
    "no such version": A.replace(b"HTTP/1.1", b"HTTP/1.2"),
    "another protocol": A.replace(b"HTTP/1.1", b"HTTP/2.0"),
    "two framings": head_of(INSTANCE, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "less than nothing": head_of(INSTANCE, "Content-Length: -1"),
    "two lengths": head_of(INSTANCE, "Content-Length: 1", "Content-Length: 2"),
}


@pytest.mark.attack(8)
@pytest.mark.parametrize("unreadable", UNREADABLE.values(), ids=UNREADABLE)
def test_ambiguous_request_is_refused_and_its_connection_closed(
    either: ProxyProcess, bodies: dict[bytes, str], unreadable: bytes
) -> None:
    for _ in range(4):
        with Client(either.port) as client:
            client.send(unreadable)
            assert statuses(client) == [400]
        with Client(either.port) as client:
            assert heard_after(client, A, bodies) == "a"
            client.send(unreadable)
            assert statuses(client) == [400]
        with Client(either.port) as client:
            client.send(A + unreadable)
            # While a request waits for its answer, what comes behind it is let go of without a word.
            assert statuses(client) in ([200, 400], [200])


def statuses(client: Client) -> list[int]:
    """Return those of all answers until the connection is closed."""
    return [read(message).status for message in iter(client.last_message, b"")]


def test_expect_100_continue_is_answered_each_time(either: ProxyProcess, bodies: dict[bytes, str]) -> None:
    with Client(either.port) as client:
        for _ in range(4):
            client.send(EXPECT)
            message = client.message()
            if message.startswith(b"HTTP/1.1 100 "):
                client.send(b"hello")
                message = client.message()
            else:
                client.send(b"hello")
            assert bodies[read(message).body] == "a"
            assert heard_after(client, A, bodies) == "a"


def heard_after(client: Client, head: bytes, bodies: dict[bytes, str]) -> str:
    client.send(head)
    return heard(client, 1, bodies)[0]


def test_body_with_the_bytes_of_a_known_head_is_no_request(either: ProxyProcess, bodies: dict[bytes, str]) -> None:
    with_body = head_of(LEAF, f"Content-Length: {2 * len(A)}")
    with Client(either.port) as client:
        for _ in range(4):
            # The answer does not wait for the body, so all that is left of the request comes by itself.
            assert heard_after(client, with_body, bodies) == "b"
            client.send(A)
            time.sleep(0.01)
            client.send(A)
            assert heard_after(client, PAGE, bodies) == "200"
            assert heard_after(client, A, bodies) == "a"


def test_field_with_the_bytes_of_a_known_head_is_no_request(either: ProxyProcess, bodies: dict[bytes, str]) -> None:
    for beginning in (A[:-2], A[:-2] + b"X: "):
        with Client(either.port) as client:
            assert heard_after(client, A, bodies) == "a"
            client.send(beginning)
            time.sleep(0.01)
            client.send(A)
            assert heard(client, 1, bodies) == ["400"], "no field, and one too many of Host"


def test_end_of_a_known_head_is_not_a_known_head(either: ProxyProcess, bodies: dict[bytes, str]) -> None:
    without_host = A.partition(b"\r\n")[0] + b"\r\n\r\n"
    for _ in range(4):
        with Client(either.port) as client:
            client.send(A[:-2] + b"X: ")
            time.sleep(0.01)
            assert heard_after(client, without_host, bodies) == "a"
            assert heard_after(client, without_host, bodies) == "400"


@pytest.mark.parametrize("together", [True, False], ids=["one-packet", "two-packets"])
def test_known_head_waits_for_the_answers_before_it(
    either: ProxyProcess, imds: EmulatorServer, bodies: dict[bytes, str], together: bool
) -> None:
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.3, times=1))
    slow = head_of(unused(LOAD_BALANCER))
    arrivals = Arrivals(imds, "/metadata/loadbalancer")
    with Client(either.port) as client:
        if together:
            client.send(A + slow + A + B)
        else:
            client.send(A, slow)
            wait_until(arrivals)
            client.send(A, B)
        first, second, *others = (read(client.message()) for _ in range(4))
        assert bodies[first.body] == "a"
        assert b"loadbalancer" in second.body
        assert [bodies[answer.body] for answer in others] == ["a", "b"]
        assert heard_after(client, A, bodies) == "a"


@pytest.mark.attack(16)
def test_client_that_ends_its_side_after_a_known_head_gets_its_answer(proxy: ProxyProcess) -> None:
    head = known(proxy.port)
    for _ in range(5):
        with Client(proxy.port) as client:
            client.send(head)
            client.socket.shutdown(socket.SHUT_WR)
            assert is_hit(read(client.message()))
            assert client.rest() == b""


# --- a head that is almost a known one


@pytest.mark.parametrize(
    ("field", "status", "detail"),
    [
        ("X-Forwarded-For: 10.0.0.1", 400, "forwarded"),
        ("x-forwarded-for:", 400, "forwarded"),
        ("Host: evil.example", 400, "host"),
        ("Metadata: true", 400, "metadata-header"),
        ("X: 1", 200, None),
    ],
)
def test_known_head_with_another_field_is_parsed(
    proxy: ProxyProcess, field: str, status: int, detail: str | None
) -> None:
    head = known(proxy.port)
    for _ in range(4):
        with Client(proxy.port) as client:
            assert client.ask(head).status == 200
            answer = client.ask(head_of(INSTANCE, field))
            assert answer.status == status
            assert detail is None or detail in cache_status(answer)["detail"]
            if status == 200:
                assert is_hit(client.ask(head))


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PURGE", "BREW"])
def test_known_head_with_another_method_is_parsed(proxy: ProxyProcess, method: str) -> None:
    head = known(proxy.port)
    for _ in range(4):
        with Client(proxy.port) as client:
            assert client.ask(head).status == 200
            client.send(head_of(INSTANCE, "Connection: close", method=method))
            assert client.rest().startswith(b"HTTP/1.1 405 ")
        with Client(proxy.port) as client:
            client.send(head.replace(b"GET", method.encode()) + head_of(LEAF, "Connection: close"))
            assert client.rest().startswith(b"HTTP/1.1 405 ")


@pytest.mark.attack(22)
def test_every_byte_of_a_known_head_matters(proxy: ProxyProcess, without_fast_path: ProxyProcess) -> None:
    """One bit of one byte is turned, whichever; what comes of it is what comes of it without the fast path."""
    head = known(proxy.port)
    assert known(without_fast_path.port) == head
    for place in range(len(head)):
        altered = head[:place] + bytes([head[place] ^ 1]) + head[place + 1 :]
        assert outcome(proxy, head, altered) == outcome(without_fast_path, head, altered), altered
    assert is_hit(get(proxy.port, INSTANCE))


def outcome(process: ProxyProcess, head: bytes, altered: bytes) -> list[tuple[int, bytes, list[str]]]:
    """Return what is answered to a known head and then to an altered one, but for what differs by the hour."""
    with Client(process.port) as client:
        assert client.ask(head).status == 200
        with contextlib.suppress(ConnectionError):
            client.send(altered)
            # Should it not be at its end yet, this is what follows; it ends the connection in any case.
            client.send(PAGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = []
        while message := client.last_message():
            answer = read(message)
            words = [word for word in answer.headers.get("cache-status", "").split("; ") if "ttl=" not in word]
            answers.append((answer.status, answer.body, words))
        return answers


# --- life of a connection


@pytest.fixture(scope="module", params=["fast path", "without fast path"])
def impatient(request: pytest.FixtureRequest, imds: EmulatorServer, folder: Path) -> Iterator[ProxyProcess]:
    """Both, with short times for the idle and for the slow."""
    alterations = [IMPATIENT] if request.param == "fast path" else [IMPATIENT, WITHOUT_FAST_PATH]
    with running(folder, *alterations, upstream=imds.url, header_timeout=HEADER_TIMEOUT) as process:
        known(process.port)
        known(process.port, LEAF)
        yield process


def test_busy_connection_stays_open_and_idle_one_is_closed(impatient: ProxyProcess) -> None:
    with Client(impatient.port) as client:
        end = time.monotonic() + 2.5 * KEEP_ALIVE
        while time.monotonic() < end:
            assert is_hit(client.ask(A))
            time.sleep(KEEP_ALIVE / 20)
        assert is_hit(client.ask(A))
        began = time.monotonic()
        assert client.rest() == b""
        assert KEEP_ALIVE * 0.9 < time.monotonic() - began < KEEP_ALIVE + 5


@pytest.mark.attack(9)
@pytest.mark.parametrize("beginning", [A[:1], A[:40], A[:-1]])
@pytest.mark.parametrize("together", [True, False], ids=["one-packet", "two-packets"])
def test_unfinished_head_after_known_ones_times_out(impatient: ProxyProcess, beginning: bytes, together: bool) -> None:
    with Client(impatient.port) as client:
        for _ in range(3):
            assert is_hit(client.ask(A))
        if together:
            client.send(A + beginning)
            assert is_hit(read(client.message()))
        else:
            assert is_hit(client.ask(A))
            client.send(beginning)
        began = time.monotonic()
        received = client.rest()
        seconds = time.monotonic() - began
    if together and beginning == b"\r\n":  # empty lines behind a request are part of nothing
        assert received == b""
        return
    assert received.startswith(b"HTTP/1.1 408 ")
    assert HEADER_TIMEOUT * 0.8 < seconds < HEADER_TIMEOUT + 5


def test_timeout_of_a_known_head_counts_from_its_own_first_byte(impatient: ProxyProcess) -> None:
    with Client(impatient.port) as client:
        began = time.monotonic()
        while time.monotonic() - began < 2 * HEADER_TIMEOUT:
            client.send(A[:50])
            time.sleep(HEADER_TIMEOUT / 10)
            client.send(A[50:])
            assert is_hit(read(client.message()))


def test_client_that_never_reads_single_answers_is_disconnected(impatient: ProxyProcess) -> None:
    _deaf(impatient, [A] * 6000, pause=0.0001, most=3 * MEBIBYTE)


@pytest.mark.attack(9, 15)
def test_client_that_never_reads_pipelined_answers_is_disconnected(impatient: ProxyProcess) -> None:
    # Requests that came together are kept until it is their turn, some thousand of them at the most.
    _deaf(impatient, [A * 1000] * 40, pause=0.0, most=20 * MEBIBYTE)


def _deaf(process: ProxyProcess, pieces: Sequence[bytes], *, pause: float, most: int) -> None:
    resident = process.resident_bytes()
    with Client(process.port, receive_buffer=2048) as client:
        client.socket.settimeout(0.3)
        ended = False
        try:
            for piece in pieces:
                client.send(piece)
                time.sleep(pause)
        except TimeoutError:
            pass  # what it sends is not taken either
        except ConnectionError:
            ended = True
        assert process.resident_bytes() - resident < most
        with Client(process.port) as another:
            assert is_hit(another.ask(B))
        # It is let go: whatever it sends from then on is answered by a reset.
        wait_until(lambda: ended or _is_reset(client), 10 * KEEP_ALIVE)
        with Client(process.port) as another:
            assert is_hit(another.ask(B))


def _is_reset(client: Client) -> bool:
    try:
        client.socket.setblocking(False)  # noqa: FBT003  # the standard library's signature
        client.socket.send(b"G")
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


# --- shutdown


def test_shutdown_is_prompt_and_truncates_no_answer(imds: EmulatorServer, tmp_path: Path) -> None:
    """Who was served by the fast path is not taken for one who has not spoken yet."""
    with running(tmp_path, PATIENT_SHUTDOWN, upstream=imds.url) as process:
        head = known(process.port)
        served, failures = Counter[int](), []

        def steadily(number: int) -> None:
            try:
                with Client(process.port) as client:
                    while True:
                        try:
                            client.send(head)
                            message = client.message()
                        except ConnectionError:
                            return
                        if not message:
                            return
                        assert is_hit(read(message))
                        served[number] += 1
            except BaseException as error:  # noqa: BLE001  # told by the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=steadily, args=(number,)) for number in range(10)]
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(Client(process.port)) for _ in range(5)]
            for client in idle:
                assert is_hit(client.ask(head))
            for thread in threads:
                thread.start()
            wait_until(lambda: len(served) == len(threads) and min(served.values()) > 20)
            process.signal(signal.SIGTERM)
            began = time.monotonic()
            assert process.process.wait(15) == 0
            seconds = time.monotonic() - began
            for thread in threads:
                thread.join(15)
            assert {client.rest() for client in idle} == {b""}
        assert not failures
        assert seconds < 5, "far from the time that those have who have not spoken yet"


LIMITED = """
import uvicorn
from imdsproxy.app import create_app
from imdsproxy.server.fast_path import connection_class
config = uvicorn.Config(
    create_app(), http=connection_class(10.0), port=0, lifespan="on", limit_max_requests=60, server_header=False,
    date_header=False, proxy_headers=False,
)
server = uvicorn.Server(config)
server.run()
print("served", server.server_state.total_requests)
"""


def test_fast_path_requests_count_towards_the_request_limit(imds: EmulatorServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", LIMITED],
            env=environment(upstream=imds.url),
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: "running on" in log.read_text(encoding="utf-8"))
        address = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text(encoding="utf-8"))
        assert address is not None
        with Client(int(address[1])) as client:
            for number in range(60):
                assert client.ask(A).status == 200, number
            assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait(60)
    text = log.read_text(encoding="utf-8")
    assert "Maximum request limit of 60 exceeded" in text
    assert "served 60\n" in text
    assert "Traceback" not in text


# --- counting and logging


def counted(process: ProxyProcess) -> Counter[tuple[str, ...]]:
    """Return the requests by endpoint and outcome, and how many times were taken."""
    counts: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(get(process.port, "/-/metrics").body.decode()):
        for sample in family.samples:
            if sample.name == "imdsproxy_requests_total":
                counts[sample.labels["endpoint"], sample.labels["outcome"]] = int(sample.value)
            elif sample.name == "imdsproxy_request_seconds_bucket" and sample.labels["le"] == "+Inf":
                counts["within any time",] += int(sample.value)
            elif sample.name == "imdsproxy_request_seconds_count":
                counts["times",] += int(sample.value)
    return counts


# All of one target; by its own a test finds its lines in the log.
_spellings = iter(("/metadata/Instance", "/metadata/INSTANCE", "/metadata/instancE", "/metadata/iNstance"))


def logged(process: ProxyProcess, path: str) -> list[dict[str, str]]:
    """Return the access log's lines of a path."""
    lines = [line for line in process.log.splitlines() if "imdsproxy.access" in line and f" path={path} " in line]
    return [dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line)) for line in lines]


def test_every_answer_is_counted_and_logged(proxy: ProxyProcess) -> None:
    path = next(_spellings)
    head = head_of(f"{path}?api-version=2021-02-01")
    refused = head_of(f"{path}?api-version=2021-02-01", "X-Forwarded-For: 1")
    before = counted(proxy)
    with Client(proxy.port) as client:
        for _ in range(301):
            assert client.ask(head).status == 200
        for _ in range(7):
            assert client.ask(refused).status == 400
        client.send(head * 50)
        assert {read(client.message()).status for _ in range(50)} == {200}
    grown = counted(proxy) - before
    made = grown["instance", "hit"] + grown["instance", "miss"]
    assert made == 351
    assert grown["instance", "miss"] <= 1
    assert grown["none", "refused"] == 7
    assert grown["times",] == grown["within any time",] == 358
    wait_until(lambda: len(logged(proxy, path)) == 358)
    lines = logged(proxy, path)
    assert Counter((line["status"], line["outcome"], line["endpoint"]) for line in lines[1:]) == {
        ("200", "hit", "instance"): 350,
        ("400", "refused", "none"): 7,
    }
    assert {(line["client"].strip('"').split()[0], line["method"]) for line in lines} == {("user", "GET")}
    assert all(float(line["milliseconds"]) >= 0 for line in lines)
    asked = {"client", "method", "path", "api_version"}
    assert set(lines[-1]) == {*asked, "status", "outcome", "endpoint", "age", "milliseconds", "x_ms_request_id"}


def test_path_is_logged_for_any_form_of_the_head(proxy: ProxyProcess) -> None:
    """The parser takes more than one space after the method."""
    path = next(_spellings)
    head = head_of(f"{path}?api-version=2021-02-01").replace(b"GET ", b"GET  ", 1)
    with Client(proxy.port) as client:
        for _ in range(5):
            assert client.ask(head).status == 200
    wait_until(lambda: len(logged(proxy, path)) == 5)


def test_head_known_at_the_socket_is_refused_at_the_admin_port(
    proxy: ProxyProcess, socket_path: Path, admin_port: int
) -> None:
    path = next(_spellings)
    head = known(proxy.port, f"{path}?api-version=2021-02-01")
    with Client(proxy.port) as main, Client(socket_path) as unix, Client(admin_port) as admin:
        for _ in range(5):
            body = main.ask(head).body
            answer = unix.ask(head)
            assert is_hit(answer)
            assert answer.body == body
            refused = admin.ask(head)
            assert refused.status == HTTPStatus.NOT_FOUND
            assert cache_status(refused) == {"detail": "admin-only"}
            assert admin.ask(PAGE).status == 200
    wait_until(lambda: len(logged(proxy, path)) == 4 + 3 * 5)
    clients = Counter(line["client"].strip('"').split()[0] for line in logged(proxy, path))
    assert clients == {"user": 19}


# --- memory and processor time


def sized(length: int, number: int = 0) -> bytes:
    """Return a head of so many bytes."""
    head = head_of(LEAF, f"X-Number: {number}", "X: ")
    return head[:-4] + b"y" * (length - len(head)) + head[-4:]


@pytest.mark.parametrize("length", [4095, 4096, 4097, 8192, 60_000])
def test_long_head_is_answered_each_time(proxy: ProxyProcess, length: int) -> None:
    head = sized(length)
    assert len(head) == length
    with Client(proxy.port) as client:
        answers = [client.ask(head) for _ in range(6)]
    assert {answer.status for answer in answers} == {200}
    assert all(map(is_hit, answers[1:]))


def test_different_heads_do_not_fill_the_memory(imds: EmulatorServer, tmp_path: Path) -> None:
    with running(tmp_path, upstream=imds.url) as process, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(process.port)) for _ in range(25)]

        def send(numbers: range) -> None:
            """Send each head three times; if it were kept, it would be by then."""
            for first in numbers[:: len(clients)]:
                for _ in range(3):
                    for number, client in enumerate(clients, first):
                        client.send(sized(4000, number))
                    for client in clients:
                        assert client.message().startswith(b"HTTP/1.1 200 ")

        send(range(1000))
        before = process.resident_bytes()
        send(range(1000, size(short=5000, full=7000)))  # 16 or 24 MB
        assert process.resident_bytes() - before < 8 * MEBIBYTE


def test_idle_proxy_uses_no_cpu(imds: EmulatorServer, tmp_path: Path) -> None:
    """A proxy stands on every node and in many a pod; nothing wakes it up but its clients."""
    with running(tmp_path, upstream=imds.url) as process, Client(process.port) as client:
        for _ in range(10):
            assert client.ask(A).status == 200
        wait_until(lambda: _quiet(process))


def _quiet(process: ProxyProcess) -> bool:
    """Whether it was not woken up once in a second."""
    before = _switches(process)
    time.sleep(1.0)
    return _switches(process) == before


def _switches(process: ProxyProcess) -> list[str]:
    """Return how often each of its threads has gone to sleep by itself (proc_pid_status(5))."""
    statuses = sorted(Path(f"/proc/{process.process.pid}/task").glob("*/status"))
    return [line for each in statuses for line in each.read_text().splitlines() if line.startswith("voluntary_")]


def test_collector_ignores_what_exists_at_the_start(imds: EmulatorServer, tmp_path: Path) -> None:
    with running(tmp_path, "collector", upstream=imds.url) as process:
        assert get(process.port, INSTANCE).status == 200
    words = re.search(r"^collector (\d+) (\d+)$", process.log, re.MULTILINE)
    assert words is not None, process.log
    frozen, threshold = map(int, words.groups())
    assert frozen > 10_000
    assert threshold > 700
