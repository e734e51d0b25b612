"""The values of the simulation: workloads, cases and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from benchmarks.scaling.node import Layout

STEADY_SECONDS = 600.0
"""How long a workload that polls is counted."""


class Workload(Enum):
    """What the pods request."""

    SAME = "the same token and the instance document"
    OWN = "a token of its own each"
    MIX = "the instance document and tokens for five resources"
    STEADY = "polling, scheduled events every 15 s"
    STEADY_FAST = "polling, scheduled events every second"
    STORM = "start after a reboot"
    RENEWAL = "many targets, each requested every ten seconds"
    ARRIVAL = "one new target after another, at random moments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of a table.

    Attributes:
        workload: What the pods request.
        layout: What stands between the pods and IMDS.
        pods: Their number.
        max_wait: The setting MAX_WAIT of every proxy, in seconds.
        budget_requests: The setting BUDGET_REQUESTS of every proxy.
        identity_apart: Whether identity has a budget of its own, at IMDS and in every proxy.
        away_for: For how many seconds IMDS answers 410 at first.
        beside: Whether a client requests from IMDS directly once a second, past the proxies.
        warmup: Whether the daemon fetches all targets when it starts.
        targets: How many targets are renewed.
        rate: How many new targets are requested in a second.
        note: The cell of the column `with`.
    """

    workload: Workload
    layout: Layout
    pods: int
    max_wait: float = 10.0
    budget_requests: int = 5
    identity_apart: bool = False
    away_for: float = 0.0
    beside: bool = False
    warmup: bool = False
    targets: int = 0
    rate: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one case.

    Attributes:
        case: The case.
        calls: Calls of clients, retries not counted.
        sent: Requests that reached IMDS.
        most: The most of them in any second.
        refused: Those that IMDS answered with 429.
        errors: Responses to clients with a status other than 200, by status.
        half: Seconds until half of the calls were served; of polls, their median. None if that never came.
        last: Seconds until the last served call; of polls, their 99th percentile. None if none was served.
        unserved: Calls that were never served.
        restarts: Restarts of pods.
    """

    case: Case
    calls: int
    sent: int
    most: int
    refused: int
    errors: Mapping[int, int]
    half: float | None
    last: float | None
    unserved: int
    restarts: int


def polling_seconds(case: Case) -> float:
    """Return for how many seconds a case that polls sends requests to IMDS."""
    return 2 * STEADY_SECONDS if case.workload is Workload.RENEWAL else STEADY_SECONDS
