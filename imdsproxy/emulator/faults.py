"""Scripted trouble: what shall go wrong, on which paths, for how long and how often."""

from __future__ import annotations

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
    """
    One trouble: either a `status` or one breakage, `latency` seconds beside it or alone.

    `hang` accepts and never answers, `reset` ends the connection with RST, `truncate` sends part of
    the promised body and closes, `garbage` sends bytes that are no HTTP. It applies to paths under
    `path`, for `seconds` from when it is added, to `times` requests, to a `share` (0 to 1) of them.
    `body` and `retry_after` go with `status`. ValueError where that makes no sense.
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
        """Refuse what would silently do nothing, or two things at once."""
        troubles = sum(getattr(self, name) for name in _BREAKAGES) + (self.status is not None)
        if troubles > 1:
            raise ValueError("status, hang, reset, truncate and garbage exclude each other")
        if not troubles and not self.latency:
            raise ValueError("nothing would go wrong; give status, latency, hang, reset, truncate or garbage")
        if self.status is None and (self.body is not None or self.retry_after is not None):
            raise ValueError("body and retry_after go with a status")
        _check("status", self.status, lambda value: 200 <= value <= 599, _NO_STATUS)
        _check("latency", self.latency, lambda value: value >= 0, "0 or more")
        _check("seconds", self.seconds, lambda value: value > 0, "more than 0")
        _check("times", self.times, lambda value: value >= 1, "1 or more")
        _check("share", self.share, lambda value: 0 <= value <= 1, "between 0 and 1")

    @property
    def breakage(self) -> Breakage | None:
        """Which way the connection breaks, if it does."""
        return next((name for name in _BREAKAGES if getattr(self, name)), None)

    def answer(self, identity: bool) -> Answer:
        """Answer this fault's status, with its own body or the one IMDS's category uses."""
        plain = failure(self.status or 500, identity)
        body = plain.body if self.body is None else self.body.encode()
        headers = () if self.retry_after is None else (("retry-after", self.retry_after),)
        return Answer(plain.status, body, plain.content_type, headers)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Fault:
        """Make a fault of named values, numbers as text too; `for` is `seconds`. ValueError names the key."""
        known = {field.name: field for field in fields(cls)}
        given = {}
        for key, value in mapping.items():
            name = "seconds" if key == "for" else key.replace("-", "_")
            if name not in known:
                raise ValueError(f"unknown key {key!r}; known are {', '.join(['for', *sorted(known)])}")
            given[name] = _read(key, value, str(known[name].type))
        return cls(**given)


@dataclass(slots=True)
class _Scripted:
    fault: Fault
    prefix: tuple[str, ...]
    until: float
    left: int | None


class Faults:
    """The faults in force, in the order they were added; safe to change from any thread."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, seed: int = 0) -> None:
        self._monotonic = monotonic
        self._random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self._lock = threading.Lock()
        self._scripted: list[_Scripted] = []

    def add(self, *faults: Fault) -> None:
        """Put faults in force from now on."""
        now = self._monotonic()
        with self._lock:
            for fault in faults:
                prefix = tuple(segment.lower() for segment in segments_of(fault.path))
                until = math.inf if fault.seconds is None else now + fault.seconds
                self._scripted.append(_Scripted(fault, prefix, until, fault.times))

    def clear(self) -> None:
        """End every fault."""
        with self._lock:
            self._scripted.clear()

    def __len__(self) -> int:
        """How many are still in force."""
        with self._lock:
            self._drop_spent(self._monotonic())
            return len(self._scripted)

    def strike(self, segments: tuple[str, ...], now: float) -> tuple[Fault | None, float]:
        """
        Return the trouble one request meets: the first status or breakage, and all latencies added.

        `segments` is the request's path in lower case; `now` is monotonic seconds.
        """
        if not self._scripted:
            return None, 0.0
        trouble, latency = None, 0.0
        with self._lock:
            self._drop_spent(now)
            for scripted in self._scripted:
                fault = scripted.fault
                decides = fault.status is not None or fault.breakage is not None
                if (decides and trouble) or segments[: len(scripted.prefix)] != scripted.prefix:
                    continue
                if fault.share < 1 and self._random.random() >= fault.share:
                    continue
                if scripted.left is not None:
                    scripted.left -= 1
                latency += fault.latency
                trouble = fault if decides else trouble
        return trouble, latency

    def _drop_spent(self, now: float) -> None:
        self._scripted = [one for one in self._scripted if now < one.until and one.left != 0]


def _check(name: str, value: float | None, sensible: Callable[[float], bool], wanted: str) -> None:
    if value is not None and not (math.isfinite(value) and sensible(value)):
        raise ValueError(f"{name} must be {wanted}, not {value}")


def _read(key: str, value: Any, wanted: str) -> Any:
    """Turn a JSON value, or text from a command line (True for a name alone), into what the field wants."""
    if value is None:
        raise ValueError(f"{key} has no value")
    if wanted == "bool":
        if value in (True, False):
            return bool(value)
        raise ValueError(f"{key} is given by its name alone")
    if isinstance(value, bool):
        raise ValueError(f"{key} needs a value, as in {key}=1")  # noqa: TRY004 - callers expect one error
    if wanted.startswith("str"):
        return str(value)
    try:
        return int(value) if wanted.startswith("int") else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number, not {value!r}") from None
