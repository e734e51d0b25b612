"""Counting of the requests that reached IMDS."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from imdsproxy.emulator.messages import read_query, segments_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from imdsproxy.emulator.emulator import Arrival

SECOND = 1.0


def most_in_a_second(times: Iterable[float]) -> int:
    """Return the most of these moments that lie within one second, whichever it is. A whole second apart is not."""
    ordered = sorted(times)
    return max((bisect_left(ordered, first + SECOND) - at for at, first in enumerate(ordered)), default=0)


def matches(arrival: Arrival, target: str) -> bool:
    """Return whether an arrival is for a path or for one below it, with at least the parameters of the target.

    Paths and names of parameters are compared without case, as IMDS does.
    """
    path, _, query = target.partition("?")
    raw_path, _, raw_query = arrival.target.partition(b"?")
    wanted = _lower(segments_of(path))
    if _lower(segments_of(raw_path.decode("latin-1")))[: len(wanted)] != wanted:
        return False
    if not query:
        return True
    found = {(name.lower(), value) for name, value in read_query(raw_query)}
    return {(name.lower(), value) for name, value in read_query(query.encode())} <= found


def account(arrivals: Sequence[Arrival], most: int = 50) -> str:
    """Return the arrivals as lines for a person, and how many came within one second."""
    if not arrivals:
        return "No request reached IMDS."
    busiest = most_in_a_second(arrival.at for arrival in arrivals)
    lines = [f"{len(arrivals)} reached IMDS, at most {busiest} of them in one second; real IMDS answers 5."]
    first = arrivals[0].at
    for arrival in arrivals[:most]:
        status = "---" if arrival.status is None else arrival.status
        lines.append(f"{arrival.at - first:8.3f} s  {status}  {arrival.method} {arrival.target.decode('latin-1')}")
    if len(arrivals) > most:
        lines.append(f"… and {len(arrivals) - most} more")
    return "\n".join(lines)


def _lower(segments: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(segment.lower() for segment in segments)
