"""Waiting for a permit, and being refused one."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from tests.integration.serving.kit import LEAF, PLATFORM, Start, assert_own, at_once
from tests.kit import Arrivals, ProxyProcess, cache_status, get, running_proxy, unused
from tests.targets import INSTANCE, TOKEN, VERSIONS

pytestmark = pytest.mark.process


def test_wait_longer_than_max_wait_is_answered_at_once_with_429(start: Start, arrivals: Arrivals) -> None:
    with start(budget_requests=1, budget_window=50, max_wait=1) as process:
        asked = len(arrivals())
        for target in (INSTANCE, TOKEN, PLATFORM):
            answer = get(process.port, target)
            assert_own(answer, 429, "budget")
            assert 20 <= int(answer.headers["retry-after"]) <= 52
        assert get(process.port, VERSIONS).status == 200, "what is kept costs nothing"
        assert len(arrivals()) == asked
        assert process.metric("imdsproxy_budget_refused_total") == 3


def test_wait_within_max_wait_is_served(start: Start, arrivals: Arrivals) -> None:
    with start(budget_requests=1, budget_window=0.4) as process:
        asked = len(arrivals()) - 1
        assert [get(process.port, f"{LEAF}&wait={number}").status for number in range(3)] == [200] * 3
        moments = [arrival.at for arrival in arrivals()[asked:]]
        assert all(later - earlier >= 0.4 for earlier, later in itertools.pairwise(moments))


def test_identity_budget_can_be_separate(start: Start) -> None:
    with start(budget_requests=2, budget_window=50, identity_budget_requests=3, max_wait=1) as process:
        tokens = [get(process.port, f"{TOKEN}&n={number}") for number in range(4)]
        assert [answer.status for answer in tokens] == [200, 200, 200, 429]
        assert [get(process.port, f"{LEAF}&n={number}").status for number in range(2)] == [200, 429]


def test_identity_shares_the_budget_by_default(start: Start) -> None:
    with start(budget_requests=3, budget_window=50, max_wait=1) as process:
        assert get(process.port, INSTANCE).status == 200
        assert [get(process.port, f"{TOKEN}&n={number}").status for number in range(2)] == [200, 429]


def test_at_most_five_identity_requests_are_in_flight(tmp_path: Path) -> None:
    emulator = Emulator(latency=0.1, identity_rate=20, identity_concurrency=5)
    with (
        run_in_thread(emulator) as imds,
        running_proxy(tmp_path, upstream=imds.url, identity_budget_requests=20) as process,
    ):
        answers = at_once(process.port, [f"{TOKEN}&n={number}" for number in range(15)])
        assert {answer.status for answer in answers} == {200}
        assert {arrival.status for arrival in emulator.arrivals} == {200}, "the emulator refuses the sixth"


def test_five_hundred_identical_requests_make_one_upstream_request(
    proxy: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals
) -> None:
    imds.emulator.faults.add(Fault(path="/metadata/instance", latency=0.5, times=1))
    target = unused(INSTANCE)
    answers = at_once(proxy.port, [target] * 500)
    assert arrivals.targets() == [target]
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
    # A client that joined has "collapsed" beside "stored", which is true of its answer too.
    words = ("hit", "collapsed", "stored")
    ways = Counter(next(word for word in words if word in cache_status(answer)) for answer in answers)
    assert ways["stored"] == 1
    assert ways["collapsed"] > 0
    assert ways.total() == 500
