"""A budget whose tokens are in a file: the same rules as for one's own, each step of them under the file's lock."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable
from random import SystemRandom
from typing import TypeVar

from imdsproxy.budget import shared_record as records
from imdsproxy.budget.bucket import Budget, Permit, State, resized
from imdsproxy.clock import Clock

assert sys.platform == "linux"  # noqa: S101  # as in `budget_file`

from imdsproxy.budget.shared_file import BudgetFile, BudgetFileError, OtherMachineError  # noqa: E402  # behind the line above

Result = TypeVar("Result")

_RANDOM = SystemRandom()
# What others give back is seen when one looks. A token rests a window before it can be taken, so nothing is missed.
_LOOKS_A_WINDOW = 4
_LONGEST_UNTIL_LOOK = 0.25
# What nobody has written yet is new for so many seconds.
_JUST_BEGUN = 5.0
_PATIENCE = 1000
"""Tries for the lock while starting, when there is no loop to keep free."""


class _TooManySettingsError(Exception):
    """So many proxies that share the budget were told different things."""

    def __str__(self) -> str:
        return (
            f"proxies that use it have {records.MOST_SETTINGS} other values of IMDSPROXY_BUDGET_REQUESTS and "
            "IMDSPROXY_BUDGET_WINDOW; give all of them the same"
        )


class SharedBudget:
    """One section of the file, used as a `Budget`; `admission.Tokens` says what its methods give."""

    def __init__(
        self,
        file: BudgetFile,
        section: int,
        clock: Clock,
        own: tuple[int, float],
        concurrent: int | None = None,
    ) -> None:
        """Join those who share it; `own` are this proxy's requests and window. Raises BudgetFileError.

        Of those who are there, the strictest counts. Beside the shared budget each proxy keeps one of its own, so that
        it keeps its word whatever somebody writes into the file.
        """
        self._file = file
        self._section = section
        self._clock = clock
        self._own = own
        self._told = own
        loans = (_RANDOM.getrandbits(63) | 1 for _ in itertools.count())
        self._budget = Budget(*own, concurrent, loans)
        self._own_budget = Budget(*own, concurrent)
        self._own_permits: dict[int, Permit] = {}
        self._settings = records.NO_SETTINGS
        self._place: int | None = None
        """The own place in the list of settings."""
        self._late: list[Callable[[Budget], object]] = []
        self._again: asyncio.TimerHandle | None = None
        self._header: records.Header | None = None
        self._number = 0
        """Of the newest record that was read or written under this header."""
        self._join()

    @property
    def requests(self) -> int:
        """How many tokens there were when it was last looked."""
        return self._budget.requests

    @property
    def concurrent(self) -> int:
        """How many of them may be lent at once."""
        return self._budget.concurrent

    def reserve(self, now: float, lease: float, *, background: bool) -> Permit | float:
        """Take a token, or say when to ask again, which is soon: others give theirs back unseen."""
        own = self._own_budget.reserve(now)
        if not isinstance(own, Permit):
            return own
        taken = self._change(lambda budget: budget.reserve(now, lease, background=background))
        if isinstance(taken, Permit):
            self._own_permits[taken.holder] = own
            return taken
        self._own_budget.release_unused(own)
        if taken is None:
            return self._file.trouble.pause
        return min(taken, self._budget.state.window / _LOOKS_A_WINDOW, _LONGEST_UNTIL_LOOK)

    def release(self, token: Permit, now: float, *, counts: bool = True) -> None:
        """Give back a token whose request is over."""
        own = self._own_permits.pop(token.holder, None)
        if own is not None:
            self._own_budget.release(own, now, counts=counts)
        self._do(lambda budget: budget.release(token, now, counts=counts))

    def release_unused(self, token: Permit) -> None:
        """Give back a token that was not used."""
        own = self._own_permits.pop(token.holder, None)
        if own is not None:
            self._own_budget.release_unused(own)
        self._do(lambda budget: budget.release_unused(token))

    def throttled(self, taken_at: float, now: float, retry_after: float | None) -> None:
        """Learn of a 429."""
        self._own_budget.throttled(taken_at, now, retry_after)
        self._do(lambda budget: budget.throttled(taken_at, now, retry_after))

    def available(self, now: float) -> int:
        """Count the tokens that could be taken at this moment."""
        self._look(now)
        return min(self._budget.available(now), self._own_budget.available(now))

    def expected_wait(self, ahead: int, now: float) -> float:
        """Estimate the wait of one who has so many before it here; those who wait elsewhere are not known."""
        self._look(now)
        return max(self._budget.expected_wait(ahead, now), self._own_budget.expected_wait(ahead, now))

    def close(self) -> None:
        """Give back what could not be given back yet."""
        if self._again is not None:
            self._again.cancel()
        for _ in range(_PATIENCE // 10):
            if not self._late or self._change(lambda _budget: True):
                return
            time.sleep(self._file.trouble.pause)

    def _join(self) -> None:
        for _ in range(_PATIENCE):
            if self._file.lock():
                break
            time.sleep(self._file.trouble.pause)
        else:
            raise BudgetFileError("another process has locked it, and does not let go")
        try:
            alone = self._file.alone()
            try:
                state = self._state()
            except records.UnknownVersionError as version:
                if not (alone and int(str(version)) < records.VERSION):
                    raise
                self._file.begin_anew()  # an older release left it
                state = self._state()
            self._put(state)
        except _TooManySettingsError as error:
            raise BudgetFileError(str(error)) from None
        except records.UnknownVersionError as version:
            raise BudgetFileError(
                f"it is of version {version}, and this proxy knows version {records.VERSION}; "
                "give all proxies the same release, or this one another file"
            ) from None
        except OSError as error:
            raise BudgetFileError(error.strerror or str(error)) from None
        finally:
            self._file.unlock()

    def _do(self, change: Callable[[Budget], object]) -> None:
        """Carry it out now, or as soon as the lock is free. The moment at which it counts is in it already."""
        self._late.append(change)
        self._catch_up()

    def _catch_up(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._late and self._change(lambda _budget: True) is None:
            self._again = asyncio.get_running_loop().call_later(self._file.trouble.pause, self._catch_up)

    def _change(self, change: Callable[[Budget], Result]) -> Result | None:
        """Do what is due, and this; None where the file cannot be had at this moment, and then nothing is done."""
        if not self._file.lock():
            return None
        try:
            self._budget.state = self._state()
            for due in self._late:
                due(self._budget)
            result = change(self._budget)
            self._put(self._budget.state)
        except records.UnknownVersionError as version:
            self._file.trouble.bar(f"is of version {version}, which this proxy does not know; nothing is asked of IMDS")
            return None
        except _TooManySettingsError as error:
            self._file.trouble.bar(f"cannot be used ({error}); nothing is asked of IMDS")
            return None
        except OtherMachineError:
            self._file.trouble.bar("is used by another machine, or a kernel of its own; nothing is asked of IMDS")
            return None
        except OSError as error:
            self._file.trouble.bar(f"cannot be used ({error.strerror}); nothing is asked of IMDS")
            return None
        finally:
            self._file.unlock()
        self._late.clear()
        return result

    def _state(self) -> State:
        """Read this section; only while locked. What is damaged, or made up, begins anew."""
        header, content = self._file.content()
        now = self._clock.monotonic()
        if header != self._header:
            self._header, self._number = header, 0
        record = records.read(content, self._section, now)
        known = record is not None and record.number >= self._number  # a lower one was written back by somebody
        requests, window = self._strictest(record.settings if record is not None and known else records.NO_SETTINGS)
        if record is not None and known:
            self._number = record.number
            state = record.state
            return (
                state if (state.requests, state.window) == (requests, window) else resized(state, requests, window, now)
            )
        if self._number or not records.blank(content, self._section):
            rests_from = self._file.begun_anew(now)
        elif now - header.begun_at < _JUST_BEGUN:
            rests_from = header.rests_from
        else:
            rests_from = now + self._file.caution  # nobody was here, or it was wiped out
        return records.begun(requests, window, rests_from)

    def _strictest(self, settings: records.Settings) -> records.Setting:
        """Take one's place among those who are there; return what the strictest of them was told."""
        first = self._section * records.MOST_SETTINGS
        found = records.with_own(settings, self._own, lambda place: self._file.present(first + place))
        if found is None:
            raise _TooManySettingsError
        self._settings, place = found
        self._file.be_present(first + place, None if self._place is None else first + self._place)
        self._place = place
        return records.strictest(self._settings)

    def _put(self, state: State) -> None:
        """Write this section; only while locked."""
        self._tell(state)
        self._file.put(*records.write(state, self._section, self._number + 1, self._settings))
        self._number += 1

    def _tell(self, state: State) -> None:
        """Say what counts, where that is not what this proxy was told, or not any more."""
        found = (state.requests, state.window)
        if found != self._told:
            self._told = found
            self._file.trouble.complain(
                f"is {state.requests} requests in {state.window:g} s now, as the strictest proxy says"
            )

    def _look(self, now: float) -> None:
        """Bring the figures up to date, without the lock."""
        record = records.read(self._file.look(), self._section, now)
        if record is not None:
            self._budget.state = record.state
