"""The lock of the shared file is held by another process, or the disk fails."""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import sys
from pathlib import Path

import pytest

from imdsproxy.budget import shared as shared_budget
from imdsproxy.budget.limiter import LATEST_START
from imdsproxy.testing.clock import FakeClock
from tests.unit.budget.sharing import Join, Said, Sharer, refusal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")


def test_held_lock_is_not_waited_for_and_changes_are_made_later(
    join: Join, clock: FakeClock, path: Path, said: Said
) -> None:
    async def scenario() -> None:
        sharer = join(requests=2)
        permit = sharer.took()
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            sharer.release(permit)
            released_at = clock.monotonic()
            again = sharer.take()
            assert isinstance(again, float)
            assert again < 0.01
            await asyncio.sleep(0.01)
            clock.advance(5.9)
            sharer.take()
            assert said() == []
        for _ in range(100):
            await asyncio.sleep(0.005)
            if sharer.available() == 2:
                break
        assert sharer.available() == 2
        assert clock.monotonic() - released_at == pytest.approx(5.9)
        sharer.took()

    asyncio.run(scenario())


def test_close_makes_the_changes_that_are_still_due(join: Join, clock: FakeClock, path: Path) -> None:
    async def scenario() -> None:
        leaving, staying = join(requests=1), join(requests=1)
        permit = leaving.took()
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            leaving.release(permit)
        leaving.close()
        leaving.close = lambda: None
        clock.advance(1)
        staying.took()

    asyncio.run(scenario())


def test_start_waits_briefly_for_the_lock_and_then_names_its_holder(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_budget, "_PATIENCE", 3)
    Sharer(path, clock).close()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert refusal(path, clock) == "another process holds its lock; stop that process, or name another file"


def test_failing_disk_stops_requests_and_is_logged(join: Join, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    one = join()
    permit = one.took()

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        assert isinstance(one.take(), float)
        assert said() == ["the shared budget cannot be used (Input/output error); no request is sent to IMDS"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        assert one.available() < 5, "what was known last"
    assert math.isfinite(permit.taken_at)
    one.took()


@pytest.mark.attack(20)
def test_permanently_held_lock_is_abandoned_with_its_file(join: Join, clock: FakeClock, path: Path, said: Said) -> None:
    one, other = join(), join()
    stopped = one.took()
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)  # as one does that was stopped in the middle
        for _ in range(8):
            assert isinstance(other.take(), float)
            clock.advance(0.9)
        for _ in range(2):
            assert isinstance(other.take(), float)
    assert "the shared budget was locked for too long and starts again; no permit is available for 17 s" in said()
    assert clock.monotonic() - stopped.taken_at > LATEST_START, "so it is not used any more"
    clock.advance(18)
    for _ in range(3):
        other.took()
    one.took()
    assert (one.available(), other.available()) == (1, 1)
    assert list(path.parent.iterdir()) == [path]


def test_lock_held_at_intervals_is_not_abandoned(join: Join, clock: FakeClock, path: Path, said: Said) -> None:
    one = join()
    for _ in range(5):
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            one.take()
        clock.advance(4)
    one.took()
    assert said() == []


def test_permanently_held_lock_in_a_readonly_folder_is_logged(
    join: Join, clock: FakeClock, path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = join()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(10):
            one.take()
            clock.advance(0.9)
    why = "is locked by another process and cannot be replaced (Permission denied)"
    assert said() == [f"the shared budget {why}; no request is sent to IMDS"]
    one.took()
