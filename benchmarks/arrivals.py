"""What reaches the emulated IMDS."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.client import INSTANCE, Client
from benchmarks.figures import BenchmarkError
from benchmarks.processes import Running

_WINDOW = 1.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request for the instance document, at seconds of the machine's monotonic clock."""

    at: float
    status: int | None


class Arrivals:
    """The requests for the instance document that have come since this was made, or since it was last asked."""

    def __init__(self, emulator: Running) -> None:
        self._port = emulator.port
        self._seen = 0
        self.new()

    def new(self) -> list[Arrival]:
        """Give those that came meanwhile, the oldest first."""
        with Client(self._port) as client:
            listed = client.document(f"/-/arrivals?since={self._seen}")
        self._seen += len(listed)
        ours = [Arrival(each["at"], each["status"]) for each in listed if each["target"].startswith(INSTANCE)]
        return sorted(ours, key=lambda arrival: arrival.at)


def check_none(arrivals: Arrivals) -> None:
    """See that what was measured were hits; BenchmarkError where any request reached IMDS."""
    if reached := len(arrivals.new()):
        raise BenchmarkError(f"{reached} requests of what should have been hits alone reached IMDS")


def most_in_a_second(moments: Sequence[float]) -> int:
    """Give the most of these moments, sorted, that lie within any one second; a whole second apart is not within."""
    most = 0
    recent: deque[float] = deque()
    for moment in moments:
        recent.append(moment)
        while moment - recent[0] >= _WINDOW:
            recent.popleft()
        most = max(most, len(recent))
    return most
