"""Real sidecars behind a real daemon, over its Unix socket."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from imdsproxy.testing.counting import most_in_a_second
from tests.kit import Arrivals, ProxyProcess, get, running_proxy, unused, wait_until
from tests.targets import INSTANCE, TOKEN

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.process,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets"),
]


@pytest.fixture(scope="module")
def limited_imds() -> Iterator[EmulatorServer]:
    with run_in_thread(Emulator()) as server:
        yield server


@contextlib.contextmanager
def daemon_and_sidecars(
    folder: Path, limited_imds: EmulatorServer, count: int, **settings: Any
) -> Iterator[tuple[ProxyProcess, list[ProxyProcess]]]:
    path = folder / "imdsproxy.sock"
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running_proxy(folder, upstream=limited_imds.url, uds=path, **settings))
        yield (
            daemon,
            [stack.enter_context(running_proxy(folder, upstream=f"unix:{path}")) for _ in range(count)],
        )


def test_ten_sidecars_send_imds_no_more_than_one_proxy(limited_imds: EmulatorServer, tmp_path: Path) -> None:
    with daemon_and_sidecars(tmp_path, limited_imds, 10) as (_, sidecars):
        arrivals = Arrivals(limited_imds, "/metadata/instance")
        targets = [unused(INSTANCE) for _ in range(8)]
        with ThreadPoolExecutor(80) as pool:
            answers = list(
                pool.map(lambda pair: get(*pair), [(one.port, target) for one in sidecars for target in targets])
            )
        assert {answer.status for answer in answers} == {200}
        assert sorted(arrivals.targets()) == sorted(targets)
        assert most_in_a_second([arrival.at for arrival in Arrivals(limited_imds)()]) <= 5
        assert sum(one.metric("imdsproxy_budget_wait_seconds_sum") for one in sidecars) < 0.5, (
            "no request waits in them"
        )


def test_age_and_token_life_are_those_of_the_daemons_entry(limited_imds: EmulatorServer, tmp_path: Path) -> None:
    with daemon_and_sidecars(tmp_path, limited_imds, 2) as (daemon, (one, other)):
        target, identity = unused(INSTANCE), unused(TOKEN)
        for wanted in (target, identity):
            get(daemon.port, wanted)
        time.sleep(2.1)
        answer = get(one.port, target)
        assert int(answer.headers["age"]) >= 2
        first, second = answer.headers["cache-status"].split(", ")
        assert first.startswith("imdsproxy; hit; ttl=")
        assert second.startswith("imdsproxy; fwd=uri-miss; ")
        assert int(second.partition("ttl=")[2].partition(";")[0]) <= 57, "not fresh for a minute once more"
        for sidecar in (one, other):
            life = [int(json.loads(get(sidecar.port, identity).body)["expires_in"]) for _ in range(2)]
            assert set(life) <= {86_397, 86_396, 86_395}
        time.sleep(1)
        assert get(one.port, target).headers["cache-status"].split(", ")[1].startswith("imdsproxy; hit")


def test_429_of_the_daemon_is_passed_on_with_its_retry_after(limited_imds: EmulatorServer, tmp_path: Path) -> None:
    with daemon_and_sidecars(tmp_path, limited_imds, 1, budget_requests=1, budget_window=30, max_wait=1) as (
        _,
        (sidecar,),
    ):
        began = time.monotonic()
        answer = get(sidecar.port, unused(INSTANCE))
        assert answer.status == 429
        assert 20 <= int(answer.headers["retry-after"]) <= 31
        assert time.monotonic() - began < 5, "it does not wait and ask again"
        assert answer.headers["cache-status"].startswith("imdsproxy; detail=budget, imdsproxy; fwd=uri-miss")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_daemon_restart_causes_no_error_for_stored_entries(
    end: signal.Signals, limited_imds: EmulatorServer, tmp_path: Path
) -> None:
    path = tmp_path / "imdsproxy.sock"
    ended = threading.Event()
    answers: list[tuple[int, bytes]] = []
    # Stale after a second, so that the sidecar asks the daemon all the time.
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(
            running_proxy(tmp_path, upstream=limited_imds.url, uds=path, ttl="/metadata/instance=1")
        )
        sidecar = stack.enter_context(running_proxy(tmp_path, upstream=f"unix:{path}", ttl="/metadata/instance=1"))
        targets = [unused(INSTANCE), unused(TOKEN)]

        def client() -> None:
            while not ended.is_set():
                for target in targets:
                    answer = get(sidecar.port, target)
                    answers.append((answer.status, answer.body))
                time.sleep(0.05)

        for target in targets:
            assert get(sidecar.port, target).status == 200
        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        first.signal(end)
        first.process.wait(15)
        time.sleep(4)
        asked = Arrivals(limited_imds, "/metadata/instance")
        stack.enter_context(running_proxy(tmp_path, upstream=limited_imds.url, uds=path, ttl="/metadata/instance=1"))
        wait_until(asked)  # the sidecar has found the new one
        ended.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}
    assert len(answers) > 100
