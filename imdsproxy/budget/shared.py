"""A budget whose permits are in a file. The rules are those of `bucket`; each step is done under the file's lock."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
from collections.abc import Callable
from random import SystemRandom
from typing import TypeVar

from imdsproxy.budget import shared_record as records
from imdsproxy.budget.bucket import Budget, Permit
from imdsproxy.budget.bucket_state import State, resized
from imdsproxy.clock import Clock
from imdsproxy.errors import BudgetFileError

assert sys.platform == "linux"  # noqa: S101  # as in `shared_file`

from imdsproxy.budget.shared_file import BudgetFile, OtherMachineError, obstacle  # noqa: E402  # behind the line above
from imdsproxy.budget.shared_settings import SharedSettings, TooManySettingsError  # noqa: E402  # as well

Result = TypeVar("Result")

_RANDOM = SystemRandom()
# Releases of other processes are noticed at the next look. A permit rests for a window, so none is noticed too late.
_LOOKS_A_WINDOW = 4
_LONGEST_UNTIL_LOOK = 0.25
# Seconds for which an unwritten section counts as new.
_JUST_BEGUN = 5.0
_PATIENCE = 1000
"""Attempts at the lock during the start, when no event loop has to stay free."""
# What can be wrong with the file, or with what others have written into it.
_OBSTACLES = (records.UnknownVersionError, TooManySettingsError, OtherMachineError, OSError)


class SharedBudget:
    """One section of the file, used like a `Budget`; see `Permits` for its methods."""

    def __init__(
        self,
        file: BudgetFile,
        section: int,
        clock: Clock,
        own: tuple[int, float],
        concurrent: int | None = None,
    ) -> None:
        """Join the proxies that share it.

        The strictest setting of all running proxies applies. Each proxy keeps a budget of its own as well, so that it
        never exceeds its own setting, even if the file is forged.

        Args:
            file: The file.
            section: The number of the section.
            clock: The machine's clock.
            own: This proxy's requests and window.
            concurrent: How many permits may be lent at once; None for all.

        Raises:
            BudgetFileError: The file cannot be used.
        """
        self._file = file
        self._section = section
        self._clock = clock
        loans = (_RANDOM.getrandbits(63) | 1 for _ in itertools.count())
        self._own = own
        self._budget = Budget(*own, concurrent, loans)
        self._own_budget = Budget(*own, concurrent)
        self._own_permits: dict[int, Permit] = {}
        self._settings = SharedSettings(file, section, own)
        self._late: list[Callable[[Budget], object]] = []
        self._again: asyncio.TimerHandle | None = None
        self._check_at = -math.inf
        """When it may be checked again whether the proxy with a stricter setting still runs."""
        self._header: records.Header | None = None
        self._number = 0
        """The number of the newest record that was read or written under this header."""
        self._join()

    @property
    def requests(self) -> int:
        """The number of permits at the last look."""
        return self._budget.requests

    @property
    def concurrent(self) -> int:
        """How many of them may be lent at once."""
        return self._budget.concurrent

    def reserve(self, now: float, lease: float, *, background: bool) -> Permit | float:
        """Return a permit, or the seconds until the next look, which are few: others release theirs unnoticed."""
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

    def release(self, permit: Permit, now: float, *, counts: bool = True) -> None:
        """Release a permit whose request is over."""
        own = self._own_permits.pop(permit.holder, None)
        if own is not None:
            self._own_budget.release(own, now, counts=counts)
        self._do(lambda budget: budget.release(permit, now, counts=counts))

    def release_unused(self, permit: Permit) -> None:
        """Release a permit that was not used."""
        own = self._own_permits.pop(permit.holder, None)
        if own is not None:
            self._own_budget.release_unused(own)
        self._do(lambda budget: budget.release_unused(permit))

    def throttled(self, taken_at: float, now: float, retry_after: float | None) -> None:
        """Slow down after a 429 from IMDS."""
        self._own_budget.throttled(taken_at, now, retry_after)
        self._do(lambda budget: budget.throttled(taken_at, now, retry_after))

    def available(self, now: float) -> int:
        """Return how many permits are available."""
        self._look(now)
        return min(self._budget.available(now), self._own_budget.available(now))

    def expected_wait(self, ahead: int, now: float) -> float:
        """Return the estimated wait behind `ahead` requests of this process. Those of other processes are not known."""
        self._look(now)
        return max(self._budget.expected_wait(ahead, now), self._own_budget.expected_wait(ahead, now))

    def close(self) -> None:
        """Perform the releases that are still due."""
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
            raise BudgetFileError("another process holds its lock; stop that process, or name another file")
        try:
            alone = self._file.alone()
            try:
                state = self._state()
            except records.UnknownVersionError as version:
                if not (alone and int(str(version)) < records.VERSION):
                    raise
                self._file.start_again()  # an older release left it
                state = self._state()
            self._put(state)
        except TooManySettingsError as error:
            raise BudgetFileError(str(error)) from None
        except records.UnknownVersionError as version:
            raise BudgetFileError(
                f"it is of version {version}, and this proxy reads version {records.VERSION}; "
                "run the same release everywhere, or name another file for this proxy"
            ) from None
        except OSError as error:
            raise BudgetFileError(error.strerror or str(error)) from None
        finally:
            self._file.unlock()

    def _do(self, change: Callable[[Budget], object]) -> None:
        """Perform a change now, or as soon as the lock is free. The change contains the moment at which it counts."""
        self._late.append(change)
        self._catch_up()

    def _catch_up(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._late and self._change(lambda _budget: True) is None:
            self._again = asyncio.get_running_loop().call_later(self._file.trouble.pause, self._catch_up)

    def _change(self, change: Callable[[Budget], Result]) -> Result | None:
        """Perform all due changes and this one. Return None, with nothing changed, if the file cannot be used now."""
        if not self._file.lock():
            return None
        try:
            self._budget.state = self._state()
            for due in self._late:
                due(self._budget)
            result = change(self._budget)
            self._put(self._budget.state)
        except _OBSTACLES as error:
            self._file.trouble.bar(f"{obstacle(error)}; no request is sent to IMDS")
            return None
        finally:
            self._file.unlock()
        self._late.clear()
        return result

    def _state(self) -> State:
        """Read this section; only while locked. A damaged or forged section starts again."""
        header, content = self._file.content()
        now = self._clock.monotonic()
        if header != self._header:
            self._header, self._number = header, 0
        record = records.read(content, self._section, now)
        known = record is not None and record.number >= self._number  # a lower one was written back from outside
        requests, window = self._settings.strictest(
            record.settings if record is not None and known else records.NO_SETTINGS
        )
        if record is not None and known:
            self._number = record.number
            state = record.state
            return (
                state if (state.requests, state.window) == (requests, window) else resized(state, requests, window, now)
            )
        if self._number or not records.blank(content, self._section):
            rests_from = self._file.note_damage(now)
        elif now - header.begun_at < _JUST_BEGUN:
            rests_from = header.rests_from
        else:
            rests_from = now + self._file.caution  # it is new, or its content was lost
        return records.begun(requests, window, rests_from)

    def _put(self, state: State) -> None:
        """Write this section; only while locked."""
        self._settings.report(state.requests, state.window)
        self._file.put(*records.write(state, self._section, self._number + 1, self._settings.all))
        self._number += 1

    def _look(self, now: float) -> None:
        """Update the figures, without the lock.

        If a stricter setting than this proxy's applies, check under the lock whether its proxy still runs. Otherwise
        a long expected wait would refuse every request, and none would come as far as `reserve`.
        """
        record = records.read(self._file.look(), self._section, now)
        if record is not None:
            self._budget.state = record.state
        requests, window = self._own
        state = self._budget.state
        if (state.requests < requests or state.window > window) and now >= self._check_at:
            self._check_at = now + _LONGEST_UNTIL_LOOK
            self._change(lambda _budget: True)
