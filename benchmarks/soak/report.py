"""The report of a run as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.soak.verdict import MIB, Check, Measured, passed


def text(measured: Measured, checks: Sequence[Check], left_out: Mapping[str, str], used_core: float) -> str:
    """Return the outcomes of each client, the range of each figure, and the verdict."""
    lines = ["outcomes by client"]
    for client, outcomes in sorted(measured.ledger.outcomes.items()):
        listed = ", ".join(f"{count:,} x {outcome}" for outcome, count in outcomes.most_common())
        lines.append(f"  {client:<26}{listed}")
    lines += [f"  {client:<26}left out: {why}" for client, why in sorted(left_out.items())]
    lines += ["", "the proxy, lowest, median and highest of all samples"]
    for name, values in _figures(measured).items():
        if values:
            row = (min(values), statistics.median(values), max(values))
            lines.append(f"  {name:<26}{'  '.join(f'{value:.1f}' for value in row)}")
    lines += ["", f"processor time: {used_core:.0%} of one core, for the proxy, IMDS and all clients together"]
    lines += ["", *(_line(check) for check in checks), "", "passed" if passed(checks) else "FAILED"]
    return "\n".join(lines)


def _figures(measured: Measured) -> dict[str, list[float]]:
    samples = measured.samples
    return {
        "resident MiB": [each.resident / MIB for each in samples],
        "proportional MiB": [each.proportional / MIB for each in samples],
        "descriptors": [float(each.descriptors) for each in samples],
        "threads": [float(each.threads) for each in samples],
        "connections": [float(each.connections) for each in samples if each.connections is not None],
    }


def _line(check: Check) -> str:
    word = {True: "passed", False: "FAILED", None: "-"}[check.passed]
    return f"{word:<8}{check.name}: {check.why}"
