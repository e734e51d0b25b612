"""How much work each part of a run does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """The number and the length of the rounds of each part."""

    latency_rounds: int
    latency_requests: int
    load_rounds: int
    load_seconds: float
    requests_for_memory: int
    curve_rounds: int
    curve_seconds: float
    connections: tuple[int, ...]
    entries: tuple[int, ...]
    miss_rounds: int
    miss_requests: int
    mixed_requests: int
    starts: int
    burst: int
    distinct: int
    cold_clients: int
    cold_targets: int
    cold_patience: float


FULL = Effort(
    latency_rounds=5,
    latency_requests=1000,
    load_rounds=5,
    load_seconds=3,
    requests_for_memory=1_000_000,
    curve_rounds=3,
    curve_seconds=1,
    connections=(1, 8, 32, 128, 512, 1000, 2000, 4000),
    entries=(1, 10, 100, 1000, 10_000),
    miss_rounds=7,
    miss_requests=200,
    mixed_requests=10_000,
    starts=5,
    burst=500,
    distinct=60,
    cold_clients=1000,
    cold_targets=40,
    cold_patience=70.0,
)
QUICK = Effort(
    latency_rounds=3,
    latency_requests=200,
    load_rounds=1,
    load_seconds=1,
    requests_for_memory=20_000,
    curve_rounds=1,
    curve_seconds=1,
    connections=(1, 32, 500),
    entries=(1, 300),
    miss_rounds=3,
    miss_requests=40,
    mixed_requests=2000,
    starts=2,
    burst=500,
    distinct=15,
    cold_clients=200,
    cold_targets=20,
    cold_patience=8.0,
)
SMOKE = Effort(
    latency_rounds=1,
    latency_requests=50,
    load_rounds=1,
    load_seconds=0.2,
    requests_for_memory=200,
    curve_rounds=1,
    curve_seconds=0.2,
    connections=(1, 32),
    entries=(30,),
    miss_rounds=1,
    miss_requests=20,
    mixed_requests=200,
    starts=1,
    burst=100,
    distinct=15,
    cold_clients=100,
    cold_targets=20,
    cold_patience=4.0,
)
