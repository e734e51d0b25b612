"""A hundred programs (twenty in `make test`) that start at once, as on the boot of a node."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from imdsproxy.emulator import Emulator, run_in_thread
from imdsproxy.testing.counting import most_in_a_second
from tests.clients.callers import CASES, environment, result, start
from tests.kit import running_proxy
from tests.size import size

pytestmark = [pytest.mark.process, pytest.mark.large, pytest.mark.client]

PROCESSES = size(short=20, full=100)
RESOURCES = [f"https://service{number}.example" for number in range(8)]
PATIENCE = 120.0
"""Seconds for all of it; most of them go into loading azure-identity a hundred times."""


def test_many_processes_and_eight_resources_make_eight_upstream_requests(tmp_path: Path) -> None:
    """Each asks for all eight, in an order of its own, and all of them begin in the same moment."""
    shuffled = random.Random(8)
    orders = [shuffled.sample(RESOURCES, len(RESOURCES)) for _ in range(PROCESSES)]
    end = time.monotonic() + PATIENCE
    with run_in_thread(Emulator()) as server, running_proxy(tmp_path, upstream=server.url) as proxy:
        env = environment(tmp_path, proxy.url)
        processes = [start(CASES[0], env, order, wait=True) for order in orders]
        try:
            for process in processes:
                assert process.stdout
                assert process.stdout.readline() == "ready\n"
            assert not [arrival for arrival in server.emulator.arrivals if b"identity" in arrival.target]
            for process in processes:
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            got = [result(process, end - time.monotonic()) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        arrivals = server.emulator.arrivals

    tokens: dict[str, set[str]] = {resource: set() for resource in RESOURCES}
    for order, answers in zip(orders, got, strict=True):
        for resource, answer in zip(order, answers, strict=True):
            assert answer.claims["aud"] == resource
            tokens[resource].add(answer.token)
    assert {len(different) for different in tokens.values()} == {1}
    asked = [arrival.target for arrival in arrivals if b"/identity/" in arrival.target]
    assert len(asked) == len(set(asked)) == len(RESOURCES)
    assert {arrival.status for arrival in arrivals} == {200}
    assert most_in_a_second([arrival.at for arrival in arrivals]) <= 5
