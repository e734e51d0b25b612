"""Every attack case that is bytes, at every server and listener, with the fast path and without it.

Each case is sent on a connection that has just served an honest request, so that the fast path has it. Then the answer
is the documented one, IMDS got nothing that it should not have got, and the next client is served.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import Starter, check_labels, check_log, read_answer
from tests.integration.attacks.listeners import read_all
from tests.integration.attacks.raw_cases import CASES, Case
from tests.integration.attacks.ways import SERVE, SERVERS, Running, honest, running
from tests.kit import Answer

pytestmark = [pytest.mark.any_python, pytest.mark.process]


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, imds: EmulatorServer, start: Starter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    name, folder = request.param, tmp_path_factory.mktemp("raw")
    with running(name, start, imds.url, folder, ttl="/metadata/instance=600", log_level="info") as server:
        yield server
        if name in SERVE:  # uvicorn logs in words of its own
            check_log(server.everywhere.process.log)
        check_labels(server.everywhere.process)


def ask(server: Running, kind: str, case: Case | None, piece: int = 1 << 20) -> list[Answer]:
    """Send an honest request and then a case, if there is one, on one connection. Return the answers until its end.

    The case goes in pieces of so many bytes.
    """
    with server.everywhere.connect(kind) as connection:
        if kind != "unix":
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(honest(kind))
        with connection.makefile("rb") as stream:
            answer = read_answer(stream)
        assert answer is not None
        assert answer.status == 200
        if case is None:
            return [answer]
        try:
            for begin in range(0, len(case.sent), piece):
                connection.sendall(case.sent[begin : begin + piece])
            if case.ends_sending:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has refused what it had read by then
        received = io.BytesIO(read_all(connection))
    answers = []
    while answer := read_answer(received, to_end=server.name not in SERVE):
        answers.append(answer)
    return answers


def outcome(answer: Answer) -> tuple[int, str]:
    """Return an answer's status and the reason in its Cache-Status."""
    return answer.status, answer.headers.get("cache-status", "").partition("; detail=")[2]


def check(server: Running, kind: str, case: Case, answers: list[tuple[int, str]]) -> None:
    """Hold that these are the answers to a case."""
    if server.name in SERVE:
        assert answers == [case.expected(kind)], kind
    else:
        assert answers[0][0] in case.accepted(kind), kind
        assert {status for status, _ in answers[1:]} <= {400}, kind


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.attack(case.number), id=str(case)) for case in CASES]
)
def test_case_is_answered_as_documented_on_every_way(server: Running, imds: EmulatorServer, case: Case) -> None:
    for kind in server.kinds:
        if case.ends_sending and server.name not in SERVE:
            continue
        before = len(imds.emulator.arrivals)
        answers = [outcome(answer) for answer in ask(server, kind, case)]
        check(server, kind, case, answers)
        arrived = {f"{each.method} {each.target.decode()}" for each in imds.emulator.arrivals[before:]}
        assert arrived <= {case.arrives}, kind
        ask(server, kind, None)


@pytest.mark.attack(8)
@pytest.mark.parametrize("case", [case for case in CASES if len(case.sent) < 250 and not case.ends_sending], ids=str)
def test_case_in_single_bytes_is_answered_alike(server: Running, imds: EmulatorServer, case: Case) -> None:
    before = len(imds.emulator.arrivals)
    check(server, "tcp", case, [outcome(answer) for answer in ask(server, "tcp", case, piece=1)])
    arrived = {f"{each.method} {each.target.decode()}" for each in imds.emulator.arrivals[before:]}
    assert arrived <= {case.arrives}
