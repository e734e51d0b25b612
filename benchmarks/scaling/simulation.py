"""Run one case in virtual time, and count what reached IMDS and what the clients saw."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from benchmarks.samples import most_in_a_second, percentile
from benchmarks.scaling.cases import Case, Result, Workload
from benchmarks.scaling.clients import Tally
from benchmarks.scaling.node import Imds, Node
from benchmarks.scaling.workloads import POLLING, request_all, request_beside, start_after_reboot
from imdsproxy.proxy import warmup
from tests import virtual


def simulate(case: Case) -> Result:
    """Simulate one case in virtual time. The same case always gives the same figures."""
    # A starting proxy draws its pauses at random; here they come from a fixed sequence.
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(warmup, "_RANDOM", random.Random(1)),
    ):
        return virtual.run(_simulate(case, Path(folder)))


async def _simulate(case: Case, folder: Path) -> Result:
    imds = Imds(identity_apart=case.identity_apart, away_for=case.away_for)
    settings = {
        "max_wait": case.max_wait,
        "budget_requests": case.budget_requests,
        "identity_budget_requests": 20 if case.identity_apart else None,
    }
    node = Node(case.layout, imds, case.pods, folder, **settings)
    tally = Tally(asyncio.get_running_loop().time())
    polls = case.workload in POLLING
    beside = asyncio.get_running_loop().create_task(request_beside(node)) if case.beside else None
    if case.workload is Workload.STORM:
        await start_after_reboot(case, node, tally)
    elif polls:
        await POLLING[case.workload](case, node, tally)
    else:
        await asyncio.sleep(1.0)  # a new budget starts with every permit taken
        tally.began = asyncio.get_running_loop().time()
        await asyncio.gather(*(request_all(case.workload, pod, node.door(pod), tally) for pod in range(case.pods)))
    if beside is not None:
        beside.cancel()
    await node.close()
    served = sorted(tally.served)
    return Result(
        case=case,
        calls=tally.calls,
        sent=len(imds.arrivals),
        most=most_in_a_second(imds.arrivals),
        refused=imds.refused,
        errors=dict(sorted(tally.errors.items())),
        half=_percentile(served, 0.5, tally.calls if not polls else len(served)),
        last=_percentile(served, 0.99, len(served)) if polls else max(served, default=None),
        unserved=tally.calls - len(served),
        restarts=tally.restarts,
    )


def _percentile(served: Sequence[float], share: float, calls: int) -> float | None:
    """Return the percentile over all calls, where unserved ones last for ever; None if it never came."""
    if not calls:
        return None
    value = percentile([*served, *[math.inf] * (calls - len(served))], share)
    return value if math.isfinite(value) else None
