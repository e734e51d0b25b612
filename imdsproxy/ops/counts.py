"""Counts of words in tables of a fixed size: by time, and of the most frequent.

Words may come from clients, such as addresses, or from the upstream, such as statuses. Each table therefore bounds how
many words it holds, and counts what it has no room for as `OTHER` or against its rarest word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

OTHER = "other"
"""The word under which a timeline counts what it has no room for."""


class Timeline:
    """Counts by word in periods of equal length. The oldest period is dropped first."""

    def __init__(self, seconds: float, periods: int, most_words: int = 16) -> None:
        """Make an empty timeline.

        Args:
            seconds: The length of a period.
            periods: How many periods there are, the current one included.
            most_words: How many words each period holds, besides `OTHER`.
        """
        self.seconds = seconds
        self.periods = periods
        self._most_words = most_words
        self._counts: deque[tuple[int, dict[str, int]]] = deque(maxlen=periods)

    def add(self, word: str, now: float, count: int = 1) -> None:
        """Add to a word's count in the period of `now`. A clock that goes back adds to the newest period."""
        number = self._number(now)
        if not self._counts or self._counts[-1][0] < number:
            self._counts.append((number, {}))
        counts = self._counts[-1][1]
        if word not in counts and len(counts) >= self._most_words:
            word = OTHER
        counts[word] = counts.get(word, 0) + count

    def rows(self, now: float) -> tuple[Mapping[str, int], ...]:
        """Return the counts of each period up to `now`, the oldest first. A period without counts is empty."""
        known = dict(self._counts)
        newest = self._number(now)
        return tuple(dict(known.get(number, {})) for number in range(newest - self.periods + 1, newest + 1))

    def totals(self, now: float) -> dict[str, int]:
        """Return each word's count in all periods up to `now`, the most frequent first."""
        sums: dict[str, int] = {}
        for row in self.rows(now):
            for word, count in row.items():
                sums[word] = sums.get(word, 0) + count
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

    def _number(self, now: float) -> int:
        return int(now // self.seconds)


class MostFrequent:
    """The most frequent of any number of words, by the Space-Saving algorithm (Metwally, Agrawal, El Abbadi, 2005).

    A new word replaces the rarest of a full table, and takes over its count. A count is therefore never too low, and
    too high by at most the total divided by the number of words in the table.
    """

    def __init__(self, most_words: int = 64) -> None:
        self._most_words = most_words
        self._counts: dict[str, int] = {}

    def add(self, word: str) -> str | None:
        """Count a word once, and return the word that it replaces, if it does."""
        rarest = None
        if word not in self._counts and len(self._counts) >= self._most_words:
            rarest = min(self._counts, key=self._counts.__getitem__)
            self._counts[word] = self._counts.pop(rarest)
        self._counts[word] = self._counts.get(word, 0) + 1
        return rarest

    def count(self, word: str) -> int:
        """Return the count of a word; 0 if it is not in the table."""
        return self._counts.get(word, 0)

    def top(self, count: int) -> tuple[tuple[str, int], ...]:
        """Return the most frequent words and their counts, the most frequent first."""
        return tuple(sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:count])
