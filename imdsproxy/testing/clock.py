"""A clock that a test moves."""

from __future__ import annotations


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, monotonic: float = 1_000.0, wall: float = 1_800_000_000.0) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def monotonic(self) -> float:
        """Return the fake monotonic time."""
        return self._monotonic

    def wall(self) -> float:
        """Return the fake wall time."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Advance both clocks."""
        self._monotonic += seconds
        self._wall += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator or a time server does."""
        self._wall += seconds
