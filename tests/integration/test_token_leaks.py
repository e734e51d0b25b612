"""Access tokens appear in answers and nowhere else: a real proxy with all that writes, and all that goes wrong."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.testing.running import listening_in
from tests import forkserver
from tests.kit import METADATA, ROOT, environment, get, talk, wait_until
from tests.otlp import Collector
from tests.servers import Server, read_head
from tests.targets import INSTANCE

pytestmark = [pytest.mark.process, pytest.mark.any_python]

TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
PAGES = ("healthy", "ready", "metrics", "status", "status.json")
LINUX = sys.platform == "linux"


def part(letter: str) -> str:
    """Return a part of a token in which every eight characters are found nowhere else."""
    return base64.urlsafe_b64encode(letter.encode() * 6 + secrets.token_bytes(42)).decode()


class Issuer(Server):
    """An IMDS that sends a token in every answer, whether it belongs there or not."""

    def __init__(self, life: int = 86400) -> None:
        super().__init__()
        self.life = life
        self.issued: list[str] = []

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            head = read_head(stream)
            if not head:
                return
            found = re.search(rb"resource=(\w+)", head)
            connection.sendall(self.answer(found[1].decode() if found else head.split()[1].decode()))

    def answer(self, kind: str) -> bytes:
        if kind.startswith("/metadata/versions"):
            return written(200, '{"apiVersions":["2021-02-01"]}')
        if kind.startswith("/metadata/instance"):
            return written(200, '{"compute":{"vmId":"02aab8a4-74ef-476e-8182-f6d2ba4166a6"},"network":{}}'.ljust(4096))
        token = ".".join(("eyJ" + part("h"), part("p"), part("s")))
        self.issued.append(token)
        whole = json.dumps({"access_token": token, "expires_in": str(self.life), "token_type": "Bearer"})
        refusal = json.dumps({"error": "invalid_request", "error_description": f"not this: {token}, but another"})
        return {
            "refused": written(400, refusal),
            "forbidden": written(403, refusal),
            "failed": written(500, refusal),
            "bare": written(500, whole),
            "page": written(200, f"<html>{token}</html>"),
            "cut": written(200, whole)[:-20],
            "moved": written(302, whole, f"location: http://127.0.0.1:9/#{token}\r\n"),
            "noise": f"HTTP/1.1 200 OK\r\n{token}\r\n\r\n{whole}".encode(),
            "status": f"HTTP/1.1 {token}\r\n\r\n".encode(),
            "long": written(200, whole + " " * 10_000),
        }.get(kind, written(200, whole))


KINDS = ("refused", "forbidden", "failed", "bare", "page", "cut", "moved", "noise", "status", "long", "raise")


def written(status: int, body: str, fields: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{fields}\r\n"
    return (head + body).encode()


@pytest.fixture
def imds() -> Iterator[Issuer]:
    with Issuer() as server:
        yield server


def start(
    log: Path, module: str = "tests.raising", **settings: object
) -> subprocess.Popen[str] | forkserver.ForkedProcess:
    env = environment(port=0, budget_requests=100, retry_base=0.01, retry_max=0.02, **settings)
    with log.open("w", encoding="utf-8") as stderr:
        if forkserver.AVAILABLE:
            return forkserver.of_proxies().start(module, env=env, stdout=stderr, stderr=stderr)
        return subprocess.Popen(
            [sys.executable, "-m", module], env=env, cwd=ROOT, stdout=stderr, stderr=stderr, text=True
        )


def port_of(log: Path) -> int:
    wait_until(lambda: listening_in(log.read_text(encoding="utf-8")))
    return int((listening_in(log.read_text(encoding="utf-8")) or "").rpartition(":")[2])


def pieces(token: str) -> Iterator[str]:
    """Yield parts of a token of twelve characters: so much of it must not appear anywhere either."""
    for long in token.removeprefix("eyJ").split("."):
        yield from (long[place : place + 12] for place in range(0, len(long) - 12, 12))


def leaks(text: str, tokens: list[str]) -> list[str]:
    return [token for token in tokens if any(piece in text for piece in pieces(token))]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_token_appears_in_no_output(
    imds: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_format: str
) -> None:
    log, handover, budget = tmp_path / "log", tmp_path / "handover", tmp_path / "budget"
    files: dict[str, Any] = {"handover_file": handover, "budget_file": budget} if LINUX else {}
    shown: dict[str, str] = {}
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
        process = start(
            log,
            upstream=imds.url,
            traces="true",
            log_level="debug",
            log_format=log_format,
            access_log="true",
            metrics_by_client=10,
            max_body_bytes=8192,
            **files,
        )
        try:
            port = port_of(log)
            assert get(port, INSTANCE).status == 200
            answers = [get(port, f"{TOKEN}good") for _ in range(4)]
            assert {answer.status for answer in answers} == {200}
            assert {json.loads(answer.body)["access_token"] for answer in answers} == {imds.issued[0]}
            renewed = get(port, f"{TOKEN}good&bypass_cache=true")
            assert json.loads(renewed.body)["access_token"] == imds.issued[-1]
            statuses = {kind: get(port, f"{TOKEN}{kind}").status for kind in KINDS}
            assert statuses == {
                **dict.fromkeys(("page", "cut", "noise", "status", "long"), 502),
                "refused": 400,
                "forbidden": 403,
                "failed": 500,
                "bare": 500,
                "moved": 302,
                "raise": 500,
            }
            # A client's own credential, in a request that is read and in one that is not.
            own = ".".join(("eyJ" + part("c"), part("d"), part("e")))
            imds.issued.append(own)
            get(port, f"{TOKEN}good", {**METADATA, "Authorization": f"Bearer {own}"})
            talk(port, b"GET / HTTP/1.1\r\nAuthorization: Bearer %b\r\nbroken\r\n\r\n" % own.encode())
            for page in PAGES:
                shown[page] = get(port, f"/-/{page}").body.decode()
            shown["openmetrics"] = get(port, "/-/metrics", {"Accept": "application/openmetrics-text"}).body.decode()
            wait_until(lambda: collector.spans)
            if LINUX:
                for name in ("cmdline", "comm", *(["environ"] if os.geteuid() == 0 else [])):  # root's alone to read
                    shown[name] = Path(f"/proc/{process.pid}/{name}").read_text(encoding="utf-8", errors="replace")
                os.kill(process.pid, signal.SIGHUP)
                wait_until(lambda: "cache emptied" in log.read_text(encoding="utf-8"))
                assert get(port, f"{TOKEN}good").status == get(port, INSTANCE).status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, log.read_text(encoding="utf-8")
        finally:
            process.kill()
            process.wait()
        shown["spans"] = repr(collector.spans) + repr(collector.heads)
    shown["log"] = log.read_text(encoding="utf-8")
    assert "LookupError" in shown["log"], "the fault has been logged, with its traceback"
    if LINUX:
        assert stat.S_IMODE(handover.stat().st_mode) == 0o600
        shown |= {each.name: each.read_bytes().decode("latin-1") for each in (handover, budget)}
        assert "02aab8a4" in shown["handover"]
    assert {name: found for name, text in shown.items() if (found := leaks(text, imds.issued))} == {}
    assert len(imds.issued) > len(KINDS)


def memory_has(pid: int, mark: bytes) -> bool:
    """Return whether the bytes are anywhere in the writable memory of a process."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="ascii").splitlines():
            place, rights, *_ = line.split()
            begin, end = (int(each, 16) for each in place.split("-"))
            if rights.startswith("rw"):
                memory.seek(begin)
                with contextlib.suppress(OSError):  # a part of the kernel's own
                    if mark in memory.read(end - begin):
                        return True
    return False


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="only root may read the memory of a process")
def test_expired_token_is_nowhere_in_the_memory_of_the_process(tmp_path: Path) -> None:
    """With PYTHONMALLOC=debug, Python overwrites what it frees, so what is found is still in use.

    The event loop reads into a buffer of its own, which keeps the last answer of IMDS until the next: the longer answer
    to another request.
    """
    log = tmp_path / "log"
    with Issuer(life=305) as imds, log.open("w", encoding="utf-8") as stderr:
        env = environment(port=0, upstream=imds.url, log_level="debug")
        env |= {"PYTHONMALLOC": "debug"}
        process = subprocess.Popen([sys.executable, "-m", "imdsproxy"], env=env, cwd=ROOT, stdout=stderr, stderr=stderr)
        try:
            port = port_of(log)
            with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:  # it stays open
                for _ in range(4):
                    connection.request("GET", f"{TOKEN}good", headers=METADATA)
                    assert connection.getresponse().read()
                assert len(imds.issued) == 1
                assert get(port, INSTANCE).status == 200
                mark = imds.issued[0].split(".")[1].encode()
                assert memory_has(process.pid, mark), "it is served, so it is there"
                wait_until(lambda: not memory_has(process.pid, mark), 15)
        finally:
            process.terminate()
            assert process.wait(20) == 0, log.read_text(encoding="utf-8")
