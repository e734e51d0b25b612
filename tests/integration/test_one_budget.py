"""Several real proxies with one budget: killed, stopped and restarted, and with a damaged file."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from imdsproxy.testing.counting import most_in_a_second
from tests.kit import Arrivals, ProxyProcess, get, refused_start, running_proxy, unused
from tests.targets import INSTANCE

pytestmark = [
    pytest.mark.process,
    pytest.mark.large,
    pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only"),
]

PROXIES = 4
# A lease is these two and five seconds more. The emulator must not read a request later than that, or it counts one
# that was given up together with the next. On a busy machine it was once more than a second late.
PATIENCE = {"connect_timeout": 0.5, "read_timeout": 4.0}
LEASE = 9.5


@pytest.fixture
def slow_imds() -> Iterator[EmulatorServer]:
    """Yield a slow IMDS that answers every request, so that permits are lent when a proxy is killed."""
    emulator = Emulator(rate=0, latency=0.1)
    with run_in_thread(emulator) as server:
        yield server


class Crowd:
    """Clients of a proxy, each asking for one new target after another until they are sent home."""

    def __init__(self, proxy: ProxyProcess, count: int = 3) -> None:
        self._port = proxy.port
        self._ended = threading.Event()
        self.statuses: list[int] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError, HTTPException):  # a killed proxy leaves an answer without its end
                self.statuses.append(get(self._port, unused(INSTANCE)).status)
                if self.statuses[-1] == 200:
                    continue
            self._ended.wait(0.05)  # the proxy has ended, or refuses at once

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def busy_proxy(folder: Path, slow_imds: EmulatorServer) -> Iterator[tuple[ProxyProcess, Crowd]]:
    settings: dict[str, Any] = {"upstream": slow_imds.url, "budget_file": folder / "budget", "max_wait": 4, **PATIENCE}
    with running_proxy(folder, ready=False, **settings) as proxy, Crowd(proxy) as crowd:
        yield proxy, crowd


def kill(proxy: ProxyProcess) -> None:
    proxy.process.kill()
    proxy.process.wait(60)


def played(
    folder: Path, slow_imds: EmulatorServer, trouble: Callable[[list[ProxyProcess], contextlib.ExitStack], None]
) -> list[float]:
    """Run a few busy proxies through an event, and return when requests reached IMDS."""
    arrivals = Arrivals(slow_imds, "/metadata")
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(busy_proxy(folder, slow_imds))[0] for _ in range(PROXIES)]
        trouble(proxies, stack)
    return [arrival.at for arrival in arrivals()]


def test_many_proxies_together_keep_one_budget(slow_imds: EmulatorServer, tmp_path: Path) -> None:
    times = played(tmp_path, slow_imds, lambda _proxies, _stack: time.sleep(6))
    assert most_in_a_second(times) <= 5
    assert len(times) >= 20, "and nearly all of it is used"


def test_permits_of_killed_proxies_return_when_their_lease_ends(slow_imds: EmulatorServer, tmp_path: Path) -> None:
    def trouble(proxies: list[ProxyProcess], stack: contextlib.ExitStack) -> None:
        for proxy in proxies[:2]:
            time.sleep(1.5)
            kill(proxy)
            stack.enter_context(busy_proxy(tmp_path, slow_imds))
        time.sleep(LEASE + 2.5)

    times = played(tmp_path, slow_imds, trouble)
    assert most_in_a_second(times) <= 5
    last = [at for at in times if at > times[-1] - 2.5]
    assert len(last) >= 8, "all five are in use again"


def test_stopped_proxies_send_no_request_late(slow_imds: EmulatorServer, tmp_path: Path) -> None:
    chance = Random(4711)

    def trouble(proxies: list[ProxyProcess], _stack: contextlib.ExitStack) -> None:
        for _ in range(6):
            time.sleep(chance.uniform(0.2, 0.6))
            stopped = chance.sample(proxies, 2)
            for proxy in stopped:
                proxy.signal(signal.SIGSTOP)
            time.sleep(chance.choice([0.3, 1.2]))
            for proxy in stopped:
                proxy.signal(signal.SIGCONT)
        proxies[0].signal(signal.SIGSTOP)
        time.sleep(LEASE + 1.5)
        proxies[0].signal(signal.SIGCONT)
        time.sleep(2)

    times = played(tmp_path, slow_imds, trouble)
    assert most_in_a_second(times) <= 5


@pytest.mark.attack(20)
def test_no_damage_to_the_file_exceeds_the_budget(slow_imds: EmulatorServer, tmp_path: Path) -> None:
    chance = Random(4711)
    path = tmp_path / "budget"

    def scribble() -> None:
        with path.open("r+b") as file:
            file.seek(chance.randrange(8_000))
            file.write(chance.randbytes(200))

    deeds: list[Callable[[], object]] = [
        scribble,
        lambda: os.truncate(path, chance.randrange(9_000)),
        lambda: path.write_bytes(chance.randbytes(9_000)),
        path.unlink,
        scribble,
    ]

    def trouble(proxies: list[ProxyProcess], _stack: contextlib.ExitStack) -> None:
        for deed in deeds:
            time.sleep(1.0)
            deed()
        time.sleep(LEASE + 2.5)
        for proxy in proxies:
            assert proxy.process.poll() is None
            assert get(proxy.port, "/-/healthy").status == 200

    times = played(tmp_path, slow_imds, trouble)
    assert most_in_a_second(times) <= 5
    assert len([at for at in times if at > times[-1] - 2.5]) >= 8, "all five are in use again"


def test_shared_429_throttles_every_proxy(tmp_path: Path) -> None:
    emulator = Emulator(rate=0)
    emulator.faults.add(Fault(status=429, retry_after="3", times=1, path="/metadata/instance"))
    with run_in_thread(emulator) as slow_imds:
        settings: dict[str, Any] = {"upstream": slow_imds.url, "budget_file": tmp_path / "budget"}
        with running_proxy(tmp_path, **settings) as one, running_proxy(tmp_path, **settings) as other:
            arrivals = Arrivals(slow_imds, "/metadata/instance")
            asked = threading.Thread(target=lambda: get(one.port, unused(INSTANCE)))
            asked.start()
            while not arrivals():
                time.sleep(0.01)
            time.sleep(0.2)
            assert get(other.port, unused(INSTANCE)).status == 200
            asked.join()
            times = [arrival.at for arrival in arrivals()]
    assert min(at - times[0] for at in times[1:]) >= 3.0


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"root:x:0:0:root:/root:/bin/sh\n", "it is not a budget file; name another")],
)
def test_foreign_file_stops_the_start_with_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    assert refused_start(budget_file=path) == f"imdsproxy: IMDSPROXY_BUDGET_FILE={path} cannot be used: {told}\n"
    assert path.read_bytes() == content
