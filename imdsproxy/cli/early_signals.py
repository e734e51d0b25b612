"""SIGINT and SIGTERM until the server handles them.

A handler ends the start by raising an exception. Python discards an exception that is raised in a destructor or in a
callback of the import system, so the signal is also remembered and is sent again once the server handles signals.
"""

from __future__ import annotations

import signal
from types import FrameType

_EXCEPTIONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}
_received: list[int] = []


def end_start() -> None:
    """Make a signal end the start: SIGINT raises KeyboardInterrupt, SIGTERM exits with status 0.

    An ignored signal stays ignored.
    """
    _received.clear()
    for number in _EXCEPTIONS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def repeat() -> None:
    """Send the signals again that have been received so far, because their exceptions were discarded."""
    for number in dict.fromkeys(_received):  # a second SIGINT would force the shutdown
        signal.raise_signal(number)


def _end(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    raise _EXCEPTIONS[signal.Signals(number)](0)
