"""The settings of the proxies that share a budget, of which the strictest applies while its proxy runs."""

from __future__ import annotations

import sys

from imdsproxy.budget import shared_record as records

assert sys.platform == "linux"  # noqa: S101  # as in `shared_file`

from imdsproxy.budget.shared_file import BudgetFile  # noqa: E402  # behind the line above


class TooManySettingsError(Exception):
    """The proxies that share the budget have too many different settings."""

    def __str__(self) -> str:
        return (
            f"proxies that use it have {records.MOST_SETTINGS} other values of IMDSPROXY_BUDGET_REQUESTS and "
            "IMDSPROXY_BUDGET_WINDOW; give all of them the same"
        )


class SharedSettings:
    """The settings in one section of the file, and this proxy's place among them."""

    def __init__(self, file: BudgetFile, section: int, own: records.Setting) -> None:
        self._file = file
        self._first = section * records.MOST_SETTINGS
        self._own = own
        self._place: int | None = None
        self._last = own
        self.all = records.NO_SETTINGS
        """The settings at the last look, this proxy's included."""

    def strictest(self, found: records.Settings) -> records.Setting:
        """Take this proxy's place in the settings that were read, and return the strictest; only while locked.

        Raises:
            TooManySettingsError: There is no place left.
        """
        joined = records.with_own(found, self._own, lambda place: self._file.present(self._first + place))
        if joined is None:
            raise TooManySettingsError
        self.all, place = joined
        self._file.be_present(self._first + place, None if self._place is None else self._first + self._place)
        self._place = place
        return records.strictest(self.all)

    def report(self, requests: int, window: float) -> None:
        """Log the setting that applies, if it is not the one that applied before."""
        if (requests, window) != self._last:
            self._last = (requests, window)
            self._file.trouble.complain(
                f"is {requests} requests in {window:g} s now, the setting of the strictest proxy"
            )
