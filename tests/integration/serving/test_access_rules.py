"""Access rules over real sockets of real users: no way to an answer that a user may not have.

The user of a TCP socket is the effective user of the thread that makes it, so one test process, as root, can be several
users. Every evasion is tried by the fast ways (a head in one piece, on a new and on a kept connection) and by the full
path (the same head in two pieces), while the answer is in the cache, and all ways must answer alike.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.integration.serving.kit import Start
from tests.kit import Arrivals, ProxyProcess, wait_for_log
from tests.targets import INSTANCE, TOKEN, VERSIONS

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be several users"),
]
WEB, OTHER = 4242, 4343
FILE = """\
default = "deny"
[[rule]]
name = "web"
user = 4242
allow = "/metadata/instance"
[[rule.token]]
identity = "system-assigned"
resource = "https://vault.azure.net"
[[rule]]
name = "all"
anyone = true
allow = "/metadata/versions"
"""
PATH, QUERY = TOKEN.split("?")
STEP = 0.05
"""Seconds between two pieces of a head, so that they arrive in two reads."""


@contextlib.contextmanager
def acting_as(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(autouse=True)
def _opened() -> Iterator[None]:
    """Close what a test has opened."""
    yield
    while Client.opened:
        Client.opened.pop().close()


class Client:
    """A connection of a user, with answers read by their length."""

    opened: ClassVar[list[Client]] = []

    def __init__(self, user: int, place: int | str) -> None:
        with acting_as(user):
            if isinstance(place, str):
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.socket.connect(place)
            else:
                self.socket = socket.create_connection(("127.0.0.1", place), timeout=10)
        self.opened.append(self)
        self.socket.settimeout(10)
        self._read = b""

    def ask(self, head: bytes, *, split: bool = False) -> tuple[int, bytes]:
        """Return the status and the whole answer; `split` sends the head in two pieces."""
        try:
            if split:
                self.socket.sendall(head[:9])
                time.sleep(STEP)
                self.socket.sendall(head[9:])
            else:
                self.socket.sendall(head)
            return self.read(has_body=not head.startswith(b"HEAD"))
        except ConnectionError:
            return 0, b""

    def read(self, *, has_body: bool = True) -> tuple[int, bytes]:
        """Return the status and the bytes of the next answer, none if the connection has ended."""
        while b"\r\n\r\n" not in self._read:
            received = self.socket.recv(65536)
            if not received:
                return 0, b""
            self._read += received
        head, _, rest = self._read.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: *(\d+)", head)
        length = int(found[1]) if found and has_body else 0
        while len(rest) < length:
            rest += self.socket.recv(65536)
        answer, self._read = head + rest[:length], rest[length:]
        return int(head.split()[1]), answer

    def close(self) -> None:
        self.socket.close()


def head(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: 169.254.169.254", "Metadata: true", *fields, "", ""]
    return "\r\n".join(lines).encode("ascii")


EVASIONS = {
    "plain": head(TOKEN),
    "escaped path": head(TOKEN.replace("token?", "%74oken?")),
    "escaped slash": head(TOKEN.replace("/token?", "%2Ftoken?")),
    "two slashes": head("/" + TOKEN),
    "empty segment": head(TOKEN.replace("/oauth2", "//oauth2")),
    "trailing slash": head(f"{PATH}/?{QUERY}"),
    "other case": head(TOKEN.replace("/metadata/identity", "/METADATA/Identity")),
    "dots": head(f"/metadata/versions/../identity/oauth2/token?{QUERY}"),
    "escaped dots": head(f"/metadata/versions/%2e%2e/identity/oauth2/token?{QUERY}"),
    "path parameter": head(f"/metadata/versions;/../identity/oauth2/token?{QUERY}"),
    "backslash": head(f"/metadata/versions\\..\\identity\\oauth2\\token?{QUERY}"),
    "question mark": head(f"/metadata/versions%3F/../../identity/oauth2/token?{QUERY}"),
    "fragment": head(f"{TOKEN}#/metadata/versions"),
    "absolute form": head(f"http://169.254.169.254{TOKEN}"),
    "absolute form with port": head(f"HTTP://169.254.169.254:80/{TOKEN}"),
    "twice the same parameter": head(f"{TOKEN}&resource=https://vault.azure.net"),
    "name in other case": head(TOKEN.replace("resource=", "RESOURCE=")),
    "escaped name": head(TOKEN.replace("resource=", "%72esource=")),
    "unknown parameter": head(f"{TOKEN}&a=b"),
    "empty parameter": head(f"{TOKEN}&"),
    "other order": head(f"{PATH}?{'&'.join(reversed(QUERY.split('&')))}"),
    "bypass": head(f"{TOKEN}&bypass_cache=true"),
    "no-cache": head(TOKEN, "Cache-Control: no-cache"),
    "http/1.0": head(TOKEN, version="1.0"),
    "http/1.0 kept": head(TOKEN, "Connection: keep-alive", version="1.0"),
    "closing": head(TOKEN, "Connection: close"),
    "forged via": head(TOKEN, "Imdsproxy-Via: 0123456789abcdef"),
    "forged address": head(TOKEN, "Forwarded: for=127.0.0.1"),
    "traced": head(TOKEN, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    "post": head(TOKEN, "Content-Length: 0", method="POST"),
    "head": head(TOKEN, method="HEAD"),
    "parent": head(f"/metadata/identity/oauth2?{QUERY}"),
    "identity": head("/metadata/identity/info?api-version=2018-02-01"),
    "issuecredential": head("/metadata/identity/issuecredential", "Content-Length: 0", method="POST"),
}
GRANTED = (
    *("plain", "escaped path", "two slashes", "trailing slash", "other case", "absolute form", "escaped name"),
    *("empty parameter", "other order", "bypass", "no-cache", "http/1.0", "http/1.0 kept", "closing", "forged via"),
    *("forged address", "traced", "absolute form with port"),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "access.toml"
    path.write_text(FILE, encoding="ascii")
    return path


@pytest.fixture
def open_socket() -> Iterator[str]:
    """Make a path for a Unix socket where every user may go."""
    with tempfile.TemporaryDirectory(prefix="imdsproxy") as folder:
        Path(folder).chmod(0o755)
        yield f"{folder}/s"


@pytest.fixture
def process(start: Start, file: Path, open_socket: str) -> Iterator[ProxyProcess]:
    with start(access_file=file, uds=open_socket) as process:
        Path(open_socket).chmod(0o666)
        yield process


@pytest.fixture
def place(request: pytest.FixtureRequest, process: ProxyProcess, open_socket: str) -> int | str:
    return process.port if request.param == "tcp" else open_socket


def warm(place: int | str) -> None:
    """Make the plain head a known one, by the user who may send it."""
    client = Client(WEB, place)
    for _ in range(5):
        status, answer = client.ask(EVASIONS["plain"])
        assert status == 200
        assert b"access_token" in answer
    client.close()


def plain(answer: tuple[int, bytes]) -> tuple[int, bytes]:
    """Return the status, with the reason of a refusal."""
    found = re.search(rb"detail=([a-z0-9-]+)", answer[1])
    return answer[0], found[1] if found else b""


@pytest.mark.parametrize("place", ["tcp", "unix"], indirect=True)
def test_no_spelling_of_a_request_reaches_a_stored_token_of_others(place: int | str, arrivals: Arrivals) -> None:
    warm(place)
    asked = len(arrivals())
    for name, sent in EVASIONS.items():
        fresh = Client(OTHER, place)
        at_once = fresh.ask(sent)
        again = fresh.ask(sent) if at_once[0] in {200, 403} else at_once
        slow = Client(OTHER, place)
        in_pieces = slow.ask(sent, split=True)
        for answer in (at_once, again, in_pieces):
            assert answer[0] in {0, 400, 403, 405}, (name, answer)
            assert b"access_token" not in answer[1], name
        assert plain(at_once) == plain(in_pieces), name
        if name in GRANTED:
            assert plain(at_once) == (403, b"access-default"), name
        fresh.close()
        slow.close()
    assert len(arrivals()) == asked, "a refusal costs IMDS nothing"


@pytest.mark.parametrize("place", ["tcp", "unix"], indirect=True)
def test_user_with_the_grant_gets_the_token_by_every_way(place: int | str) -> None:
    warm(place)
    for name in GRANTED:
        for split in (False, True):
            client = Client(WEB, place)
            status, answer = client.ask(EVASIONS[name], split=split)
            assert status == 200, (name, answer)
            assert b"access_token" in answer
            client.close()
    for name in set(EVASIONS) - set(GRANTED):
        client = Client(WEB, place)
        assert b"access_token" not in client.ask(EVASIONS[name])[1], name
        client.close()


@pytest.mark.parametrize("place", ["tcp", "unix"], indirect=True)
def test_equal_heads_of_two_users_on_kept_connections_are_told_apart(place: int | str, arrivals: Arrivals) -> None:
    warm(place)
    asked = len(arrivals())
    web, other = Client(WEB, place), Client(OTHER, place)
    for _ in range(10):
        assert web.ask(EVASIONS["plain"])[0] == 200
        assert plain(other.ask(EVASIONS["plain"])) == (403, b"access-default")
        assert other.ask(head(VERSIONS))[0] == 200
    assert len(arrivals()) <= asked + 1, "the versions"


@pytest.mark.parametrize("place", ["tcp", "unix"], indirect=True)
def test_pipelined_requests_are_decided_one_by_one(place: int | str) -> None:
    warm(place)
    other = Client(OTHER, place)
    other.socket.sendall(head(VERSIONS) + EVASIONS["plain"] + head(VERSIONS) + EVASIONS["plain"] * 2)
    answers = [other.read() for _ in range(5)]
    assert [status for status, _ in answers] == [200, 403, 200, 403, 403]
    assert not any(b"access_token" in answer for _, answer in answers)


def test_program_is_found_over_tcp_and_at_the_socket(start: Start, file: Path, open_socket: str) -> None:
    """The client is this process, so its program is this Python."""
    rule = '[[rule]]\nname = "me"\nexecutable = "{}"\nallow = "/metadata/instance"\n'
    for program, status in ((Path("/proc/self/exe").readlink(), 200), ("/usr/bin/cat", 403)):
        file.write_text('default = "deny"\n' + rule.format(program), encoding="utf-8")
        with start(access_file=file, uds=open_socket) as process:
            for place in (process.port, open_socket):
                client = Client(0, place)
                for split in (True, False, False, False):
                    assert client.ask(head(INSTANCE), split=split)[0] == status, (program, place)


def test_admin_listener_serves_no_token(start: Start, file: Path) -> None:
    with start(access_file=file, admin_port=0) as process:
        warm(process.port)
        found = re.search(r"listening.*?:([0-9]+)\b.*serves=/-/", process.log)
        assert found is not None
        status, answer = Client(WEB, int(found[1])).ask(EVASIONS["plain"])
        assert status == 404
        assert b"access_token" not in answer


def test_changed_file_is_taken_up_on_sighup_only_if_it_is_sound(process: ProxyProcess, file: Path) -> None:
    warm(process.port)
    web, other = Client(WEB, process.port), Client(OTHER, process.port)
    assert web.ask(EVASIONS["plain"])[0] == 200
    file.write_text(FILE + "unknown = 1\n", encoding="ascii")
    process.signal(signal.SIGHUP)
    wait_for_log(process, "access file not taken up")
    wait_for_log(process, r"line 13: \"unknown\" is not a key here")
    assert web.ask(EVASIONS["plain"])[0] == 200
    assert other.ask(EVASIONS["plain"])[0] == 403
    file.write_text(FILE.replace("4242", "4343"), encoding="ascii")
    process.signal(signal.SIGHUP)
    wait_for_log(process, "access rules in force", times=2)
    for _ in range(3):
        assert other.ask(EVASIONS["plain"])[0] == 200
        assert plain(web.ask(EVASIONS["plain"])) == (403, b"access-default"), "the connection and head were known"


def test_refusals_are_logged_and_counted(process: ProxyProcess) -> None:
    other = Client(OTHER, process.port)
    assert other.ask(head(INSTANCE))[0] == 403
    assert process.metric("imdsproxy_access_refused_total") == 1
    wait_for_log(process, "access refused")
    wait_for_log(process, "4343")
    assert "access_token" not in process.log


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('default = "deny"\nall = 1\n', 'line 2: "all" is not a key here'),
        ('default = "deny"\n[[rule]]\nname = "a"\nnamespace = "b"\nallow = "/metadata"\n', 'the rule "a" names pods'),
    ],
)
def test_bad_file_stops_the_start(file: Path, content: str, message: str) -> None:
    from tests.kit import ended  # noqa: PLC0415  # for this test only

    file.write_text(content, encoding="ascii")
    done = ended(access_file=file, upstream="http://127.0.0.1:9", port=0)
    assert done.returncode == 2
    assert f"IMDSPROXY_ACCESS_FILE={file}: {message}" in done.stderr
