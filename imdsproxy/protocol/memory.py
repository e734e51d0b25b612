"""Remember the results of a pure function, bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Argument = TypeVar("Argument", bound=Hashable)
Result = TypeVar("Result")


class Remembered(Generic[Argument, Result]):
    """A pure function whose results are remembered, bounded to `max_bytes` as `size` counts them.

    Results are in two generations. When the younger generation reaches half of the bound, it replaces the older one.
    A result that is used again moves to the younger generation. A known result therefore costs one lookup, and the
    results need no order of use.
    """

    def __init__(
        self, function: Callable[[Argument], Result], size: Callable[[Argument, Result], int], max_bytes: int
    ) -> None:
        """Remember `function`; `size` returns the bytes that one argument and its result take."""
        self._function = function
        self._size = size
        self._half = max_bytes // 2
        self._young: dict[Argument, Result] = {}
        self._old: dict[Argument, Result] = {}
        self._young_bytes = 0
        self._old_bytes = 0

    @property
    def bytes(self) -> int:
        """The bytes of all remembered results, as `size` counts them."""
        return self._young_bytes + self._old_bytes

    def __call__(self, argument: Argument) -> Result:
        """Return the function's result, from memory if it is there."""
        try:
            return self._young[argument]
        except KeyError:
            pass
        try:
            result = self._old[argument]
        except KeyError:
            result = self._function(argument)
        size = self._size(argument, result)
        if size > self._half:
            return result
        if self._young_bytes + size > self._half:
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
        self._young[argument] = result
        self._young_bytes += size
        return result
