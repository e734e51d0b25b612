"""Faults on demand: what fails, on which paths, for how long and how often."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from imdsproxy.emulator.messages import Answer, failure, segments_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Breakage = Literal["hang", "reset", "truncate", "garbage"]
_BREAKAGES: tuple[Breakage, ...] = ("hang", "reset", "truncate", "garbage")
_NO_STATUS = "between 200 and 599"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: a `status` or one breakage, with or without `latency`; or only `latency`.

    Attributes:
        path: The path to which it applies, with all paths below it.
        status: The status of the answer.
        body: The body that goes with `status`; None is the body of IMDS.
        retry_after: The Retry-After that goes with `status`.
        latency: Seconds added to the answer.
        hang: Accept the request and never answer.
        reset: End the connection with RST.
        truncate: Send a part of the body that Content-Length announces, and close.
        garbage: Send bytes that are not HTTP.
        seconds: The seconds for which it applies, from when it is added; None is without end.
        times: The number of requests to which it applies; None is all.
        share: The share of the requests to which it applies (0 to 1).

    Raises:
        ValueError: The values contradict each other, or would have no effect.
    """

    path: str = "/"
    status: int | None = None
    body: str | None = None
    retry_after: str | None = None
    latency: float = 0.0
    hang: bool = False
    reset: bool = False
    truncate: bool = False
    garbage: bool = False
    seconds: float | None = None
    times: int | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a fault that has no effect, or two."""
        effects = sum(getattr(self, name) for name in _BREAKAGES) + (self.status is not None)
        if effects > 1:
            raise ValueError("status, hang, reset, truncate and garbage exclude each other")
        if not effects and not self.latency:
            raise ValueError("the fault has no effect; give status, latency, hang, reset, truncate or garbage")
        if self.status is None and (self.body is not None or self.retry_after is not None):
            raise ValueError("body and retry_after go with a status")
        _check("status", self.status, lambda value: 200 <= value <= 599, _NO_STATUS)
        _check("latency", self.latency, lambda value: value >= 0, "0 or more")
        _check("seconds", self.seconds, lambda value: value > 0, "more than 0")
        _check("times", self.times, lambda value: value >= 1, "1 or more")
        _check("share", self.share, lambda value: 0 <= value <= 1, "between 0 and 1")

    @property
    def breakage(self) -> Breakage | None:
        """The breakage of the connection, None without one."""
        return next((name for name in _BREAKAGES if getattr(self, name)), None)

    def answer(self, identity: bool) -> Answer:
        """Return the answer with the status of this fault, and with its body or that of IMDS."""
        plain = failure(self.status or 500, identity)
        body = plain.body if self.body is None else self.body.encode()
        headers = () if self.retry_after is None else (("retry-after", self.retry_after),)
        return Answer(plain.status, body, plain.content_type, headers)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Fault:
        """Make a fault from named values, where numbers may be text and `for` means `seconds`.

        Raises:
            ValueError: A key is unknown, or its value is invalid; the message names the key.
        """
        known = {field.name: field for field in fields(cls)}
        arguments = {}
        for key, value in mapping.items():
            name = "seconds" if key == "for" else key.replace("-", "_")
            if name not in known:
                raise ValueError(f"unknown key {key!r}; known are {', '.join(['for', *sorted(known)])}")
            arguments[name] = _read(key, value, str(known[name].type))
        return cls(**arguments)


@dataclass(slots=True)
class _Scripted:
    fault_id: int
    fault: Fault
    prefix: tuple[str, ...]
    until: float
    left: int | None


class Faults:
    """The faults in force, in the order in which they were added. Safe to use from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, seed: int = 0) -> None:
        self._monotonic = monotonic
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._lock = threading.Lock()
        self._scripted: list[_Scripted] = []
        self._ids = itertools.count(1)

    def add(self, *faults: Fault) -> list[int]:
        """Add faults, in force from now on, and return their ids."""
        now = self._monotonic()
        added = []
        with self._lock:
            for fault in faults:
                prefix = tuple(segment.lower() for segment in segments_of(fault.path))
                until = math.inf if fault.seconds is None else now + fault.seconds
                added.append(next(self._ids))
                self._scripted.append(_Scripted(added[-1], fault, prefix, until, fault.times))
        return added

    def remove(self, fault_id: int) -> None:
        """Drop one fault; raise KeyError if none of this id is in force."""
        with self._lock:
            self._drop_spent(self._monotonic())
            kept = [each for each in self._scripted if each.fault_id != fault_id]
            if len(kept) == len(self._scripted):
                raise KeyError(fault_id)
            self._scripted = kept

    def listing(self) -> list[dict[str, Any]]:
        """Return the faults in force: what differs from the defaults, `id`, and `left`, the seconds and times left."""
        now = self._monotonic()
        with self._lock:
            self._drop_spent(now)
            return [
                {
                    "id": each.fault_id,
                    **{
                        field.name: getattr(each.fault, field.name)
                        for field in fields(Fault)
                        if field.name == "path" or getattr(each.fault, field.name) != field.default
                    },
                    "left": {
                        "seconds": None if math.isinf(each.until) else round(each.until - now, 3),
                        "times": each.left,
                    },
                }
                for each in self._scripted
            ]

    def clear(self) -> None:
        """Drop every fault."""
        with self._lock:
            self._scripted.clear()

    def __len__(self) -> int:
        """Return how many are in force."""
        with self._lock:
            self._drop_spent(self._monotonic())
            return len(self._scripted)

    def apply(self, segments: tuple[str, ...], now: float) -> tuple[Fault | None, float]:
        """Return the first status or breakage that applies to a request, and the sum of all latencies.

        Args:
            segments: The path of the request, in lower case.
            now: Monotonic seconds.
        """
        if not self._scripted:
            return None, 0.0
        chosen, latency = None, 0.0
        with self._lock:
            self._drop_spent(now)
            for scripted in self._scripted:
                fault = scripted.fault
                decides = fault.status is not None or fault.breakage is not None
                if (decides and chosen) or segments[: len(scripted.prefix)] != scripted.prefix:
                    continue
                if fault.share < 1 and self._random.random() >= fault.share:
                    continue
                if scripted.left is not None:
                    scripted.left -= 1
                latency += fault.latency
                chosen = fault if decides else chosen
        return chosen, latency

    def _drop_spent(self, now: float) -> None:
        self._scripted = [each for each in self._scripted if now < each.until and each.left != 0]


def _check(name: str, value: float | None, sensible: Callable[[float], bool], wanted: str) -> None:
    if value is None:
        return
    if not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, {wanted}, not {value!r}")  # noqa: TRY004 - callers expect one error
    if not (math.isfinite(value) and sensible(value)):
        raise ValueError(f"{name} must be {wanted}, not {value}")


def _read(key: str, value: Any, wanted: str) -> Any:
    """Return a JSON value, or text from a command line (True for a name alone), in the type of its field."""
    if value is None:
        raise ValueError(f"{key} has no value")
    if wanted == "bool":
        if value in (True, False):
            return bool(value)
        raise ValueError(f"{key} takes no value")
    if isinstance(value, bool):
        raise ValueError(f"{key} needs a value, as in {key}=1")  # noqa: TRY004 - callers expect one error
    if wanted.startswith("str"):
        return str(value)
    try:
        return int(value) if wanted.startswith("int") else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number, not {value!r}") from None
