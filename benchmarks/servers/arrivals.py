"""The requests that reached the emulated IMDS."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.figures import BenchmarkError
from benchmarks.loads.client import Client
from benchmarks.machine.processes import Running
from benchmarks.targets import INSTANCE


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request for the instance document; `at` is in seconds of the monotonic clock."""

    at: float
    status: int | None


class Arrivals:
    """The requests for the instance document since this object was made, or since the last call of `new`."""

    def __init__(self, emulator: Running) -> None:
        self._port = emulator.port
        self._seen = 0
        self.new()

    def new(self) -> list[Arrival]:
        """Return the requests since the last call, the oldest first."""
        with Client(self._port) as client:
            listed = client.document(f"/-/arrivals?since={self._seen}")
        self._seen += len(listed)
        ours = [Arrival(each["at"], each["status"]) for each in listed if each["target"].startswith(INSTANCE)]
        return sorted(ours, key=lambda arrival: arrival.at)


def check_none(arrivals: Arrivals) -> None:
    """Raise BenchmarkError if a request reached IMDS, because then not all that was measured were hits."""
    if reached := len(arrivals.new()):
        raise BenchmarkError(f"{reached} requests that should have been hits reached IMDS")
