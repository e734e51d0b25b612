"""The attack cases that are bytes, sent through the redirect by a client with the address of IMDS hard-coded."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tests.integration.attacks.kit import read_answer
from tests.integration.attacks.raw_cases import CASES
from tests.system.topology import ORDINARY_USER, Azure
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.system

# Sends each case after an honest request on the same connection, and an honest one afterwards.
_CLIENT = """
import json, socket, sys
honest, *cases = json.load(sys.stdin)
def ask(sent, ends):
    with socket.create_connection(("169.254.169.254", 80), 10) as connection:
        connection.sendall(honest.encode("latin-1"))
        received = b""
        while b'"compute"' not in received:
            part = connection.recv(65536)
            if not part:
                sys.exit("an honest request got no answer")
            received += part
        try:
            connection.sendall(sent)
            if ends:
                connection.shutdown(1)
        except OSError:
            pass
        try:
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass
        return received.decode("latin-1")
json.dump([ask(sent.encode("latin-1"), ends) for sent, ends in cases], sys.stdout)
"""
_HONEST = f"GET {INSTANCE} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n"


def _outcomes(received: str) -> list[tuple[int, str]]:
    """Return status and reason of each answer but the honest request's."""
    stream = io.BytesIO(received.encode("latin-1"))
    answers = []
    while answer := read_answer(stream):
        answers.append((answer.status, answer.headers.get("cache-status", "").partition("; detail=")[2]))
    assert answers[0][0] == 200
    return answers[1:]


@pytest.mark.attack(*sorted({case.number for case in CASES}))
def test_cases_are_answered_through_the_redirect_as_at_the_port(azure: Azure) -> None:
    with azure.running_proxy(ttl="/metadata/instance=600") as proxy:
        azure.redirect()
        for target in (INSTANCE, TOKEN):
            assert azure.vm.fetch(target, user=ORDINARY_USER).by_proxy
        before = len(azure.arrivals())
        sent = [[case.sent.decode("latin-1"), case.ends_sending] for case in CASES]
        last = [f"{_HONEST}Connection: close\r\n\r\n", False]
        order = json.dumps([f"{_HONEST}\r\n", *sent, last])
        done = azure.vm.run(sys.executable, "-ISc", _CLIENT, user=ORDINARY_USER, stdin=order, timeout=60)
        *received, final = [_outcomes(one) for one in json.loads(done.stdout)]
        assert dict(zip(map(str, CASES), received, strict=True)) == {
            str(case): [case.expected("tcp")] for case in CASES
        }
        assert final == [(200, "")]
        arrived = {f"{each.method} {each.target}" for each in azure.arrivals()[before:]}
        assert arrived == {case.arrives for case in CASES if case.arrives}
        assert "Traceback" not in proxy.log
