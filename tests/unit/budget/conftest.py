"""The fixtures of the tests of shared budgets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imdsproxy.testing.clock import FakeClock

if sys.platform == "linux":  # a budget is shared on Linux only
    from tests.unit.budget.sharing import Sharer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget"


@pytest.fixture
def join(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sharer]]:
    """Join the proxies that share the file, after the first rest of its permits."""
    sharers = []

    def joined(**more: float) -> Sharer:
        new = not path.exists()
        sharer = Sharer(path, clock, **more)  # type: ignore[arg-type]
        sharers.append(sharer)
        if new:
            clock.advance(1.0)
        return sharer

    yield joined
    for sharer in sharers:
        sharer.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "imdsproxy.budget.trouble")
    return lambda: [record.getMessage() for record in caplog.records]
