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


def ask(server: Running, kind: str, case: Case | None) -> list[Answer]:
    """Send an honest request and then a case, if there is one, on one connection. Return the answers until its end."""
    with server.everywhere.connect(kind) as connection:
        connection.sendall(honest(kind))
        with connection.makefile("rb") as stream:
            answer = read_answer(stream)
        assert answer is not None
        assert answer.status == 200
        if case is None:
            return [answer]
        try:
            connection.sendall(case.sent)
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


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.attack(case.number), id=str(case)) for case in CASES]
)
def test_case_is_answered_as_documented_on_every_way(server: Running, imds: EmulatorServer, case: Case) -> None:
    for kind in server.kinds:
        if case.ends_sending and server.name not in SERVE:
            continue
        before = len(imds.emulator.arrivals)
        answers = [outcome(answer) for answer in ask(server, kind, case)]
        if server.name in SERVE:
            assert answers == [case.expected(kind)], kind
        else:
            assert answers[0][0] in case.accepted(kind), kind
            assert {status for status, _ in answers[1:]} <= {400}, kind
        arrived = {f"{each.method} {each.target.decode()}" for each in imds.emulator.arrivals[before:]}
        assert arrived <= {case.arrives}, kind
        ask(server, kind, None)
