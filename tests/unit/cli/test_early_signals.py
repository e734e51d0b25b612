"""Signals that arrive before the server handles them."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest

from imdsproxy.cli.early_signals import end_start, repeat

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in BOTH}
    yield
    end_start()  # forgets what was received
    for number, handler in previous.items():
        signal.signal(number, handler)


class _InDestructor:
    """Receives a signal where Python discards the exception of its handler."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signal_ends_the_start(number: signal.Signals, raised: type[BaseException]) -> None:
    end_start()
    with pytest.raises(raised) as caught:
        signal.raise_signal(number)
    assert getattr(caught.value, "code", 0) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", BOTH)
def test_signal_whose_exception_was_discarded_is_repeated_once(number: signal.Signals) -> None:
    end_start()
    for _ in range(2):
        _InDestructor(number)
    gc.collect()
    served: list[int] = []
    signal.signal(number, lambda again, _frame: served.append(again))
    repeat()
    assert served == [number]


def test_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_start()
    signal.raise_signal(signal.SIGINT)
    repeat()
