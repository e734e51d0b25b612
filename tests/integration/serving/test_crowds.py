"""Many targets requested at the same moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import Arrival, Emulator, Fault, run_in_thread
from imdsproxy.testing.counting import most_in_a_second
from tests.integration.serving.kit import LEAF, at_once
from tests.kit import Answer, get, is_hit, running_proxy
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.process


@dataclass
class Crowd:
    """What came of asking for many targets at once: the answers, at first and later, and what IMDS saw of it."""

    answers: list[Answer]
    later: list[Answer]
    seconds: float
    arrivals: list[Arrival]
    retries: float


SIXTY = [f"{LEAF}&n={number}" for number in range(60)]
SIX = [INSTANCE, TOKEN, *(f"{LEAF}&n={number}" for number in range(4))]


def _crowd(folder: Path, targets: list[str], *faults: Fault, **settings: Any) -> Crowd:
    with (
        run_in_thread(Emulator(rate=5)) as imds,
        running_proxy(folder, upstream=imds.url, max_wait=30, **settings) as process,
    ):
        assert get(process.port, INSTANCE).status == 200
        imds.emulator.faults.add(*faults)
        began = time.monotonic()
        answers = at_once(process.port, targets)
        took = time.monotonic() - began
        retries = process.metric("imdsproxy_upstream_retries_total")
        return Crowd(answers, at_once(process.port, targets), took, imds.emulator.arrivals, retries)


@pytest.fixture(scope="module")
def crowds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[], Crowd]]]:
    """Start both side by side; each is called for what came of it."""
    with ThreadPoolExecutor(2) as pool:
        folder = tmp_path_factory.mktemp("sixty")
        sixty = pool.submit(_crowd, folder, SIXTY).result
        folder = tmp_path_factory.mktemp("updated")
        updated = pool.submit(_crowd, folder, SIX, Fault(status=410, seconds=3), retry_base=0.5).result
        yield {"sixty": sixty, "updated": updated}


def test_sixty_targets_at_once_never_exceed_five_a_second(
    crowds: dict[str, Callable[[], Crowd]],
) -> None:
    crowd = crowds["sixty"]()
    assert {answer.status for answer in crowd.answers} == {200}
    assert sorted(arrival.target.decode() for arrival in crowd.arrivals[2:]) == sorted(SIXTY)
    assert {arrival.status for arrival in crowd.arrivals} == {200}
    assert most_in_a_second([arrival.at for arrival in crowd.arrivals]) == 5
    assert crowd.seconds >= 11
    assert {is_hit(answer) for answer in crowd.later} == {True}


def test_clients_wait_during_an_update_of_imds_and_are_served(
    crowds: dict[str, Callable[[], Crowd]],
) -> None:
    crowd = crowds["updated"]()
    assert {answer.status for answer in crowd.answers} == {200}
    assert [is_hit(answer) for answer in crowd.answers] == [True, *[False] * 5]
    assert {arrival.status for arrival in crowd.arrivals} == {200, 410}
    assert most_in_a_second([arrival.at for arrival in crowd.arrivals]) <= 5
    # Those that were under way before the first 410 was known, then one probe.
    assert 2 <= sum(arrival.status == 410 for arrival in crowd.arrivals) <= 5 + 3
    assert crowd.retries >= 1
    assert {is_hit(answer) for answer in crowd.later} == {True}
