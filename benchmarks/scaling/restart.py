"""The requests to IMDS of a node whose daemon is restarted, with and without a handover file.

    python -m benchmarks.scaling.restart                           print the table
    python -m benchmarks.scaling.restart --into docs/scaling.md    replace the table in that document

The real parts of the proxy run in virtual time, so the figures are the same on every machine. It needs a checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmarks.scaling.document import replace_table
from benchmarks.scaling.node import Imds
from imdsproxy.config import Config
from imdsproxy.ops.readiness import Readiness
from imdsproxy.parts.parts import Parts, build
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.request_parser import read
from imdsproxy.records import RequestRecord
from tests import virtual
from tests.virtual import VirtualClock

NAME = "restart"
SIZES = ((4, 1), (12, 5), (40, 20))
"""Targets that describe the VM, and access tokens."""
RESTARTS = 5
_AWAY = 2.0
_ASKED_EVERY = 10.0
_RUNS_FOR = 30.0
_FIELDS = ((b"host", b"localhost"), (b"metadata", b"true"))
# The proxy checks that it has the clock of the machine, and virtual time is one for all of its processes.
_BOOT = bytes(16)


@dataclass(frozen=True)
class Figures:
    """What a rolling restart cost."""

    requests: int
    """To IMDS, in all restarts."""
    slowest: float
    """The longest that a client waited for a document that describes the VM, in seconds."""


def measure(described: int, tokens: int, handover_file: str | None) -> Figures:
    """Restart a daemon in virtual time. The same arguments always give the same figures."""
    with (
        mock.patch("imdsproxy.clock.boot_id", return_value=_BOOT),
        mock.patch("imdsproxy.clock.is_machine_wide", return_value=True),
    ):
        return virtual.run(_restart(described, tokens, handover_file))


async def _restart(described: int, tokens: int, handover_file: str | None) -> Figures:
    imds = Imds()
    clock = VirtualClock()
    config = Config(upstream=Address("127.0.0.1", 9), handover_file=handover_file, max_wait=60.0)
    documents = [f"/metadata/instance/compute/tagsList/{number}?api-version=2021-02-01" for number in range(described)]
    identities = [
        f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=r&client_id={number}"
        for number in range(tokens)
    ]
    before, slowest = 0, 0.0
    for number in range(RESTARTS + 1):
        parts = build(config, imds, clock)
        await Readiness(parts.proxy, ()).become()
        for _ in range(int(_RUNS_FOR / _ASKED_EVERY)):
            began = clock.monotonic()
            waits = await asyncio.gather(*(_ask(parts, clock, target) for target in documents + identities))
            if number:
                slowest = max(slowest, *waits[:described])
            await asyncio.sleep(max(0.0, began + _ASKED_EVERY - clock.monotonic()))
        if number == 0:
            before = len(imds.arrivals)
        await parts.proxy.fetches.close()
        parts.close()
        await asyncio.sleep(_AWAY)
    return Figures(len(imds.arrivals) - before, slowest)


async def _ask(parts: Parts, clock: VirtualClock, target: str) -> float:
    """Ask as a client does, and return how long it took."""
    began = clock.monotonic()
    request = read("GET", target.encode(), _FIELDS, parts.accepted_hosts)
    if isinstance(request, Refusal):
        raise TypeError(request.description)
    answer = parts.proxy.answer(request)
    record = answer if isinstance(answer, RequestRecord) else await answer
    if record.response.status != 200:
        raise RuntimeError(f"{target}: {record}")
    return clock.monotonic() - began


def table() -> str:
    """Return the table."""
    columns = (
        "documents",
        "tokens",
        "requests of a restart, without the file",
        "with it",
        "longest wait for a document, without",
        "with",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for described, tokens in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            without = measure(described, tokens, None)
            having = measure(described, tokens, str(Path(folder) / "handover"))
        requests = [f"{one.requests / RESTARTS:.1f}" for one in (without, having)]
        waits = [f"{one.slowest:.1f} s" for one in (without, having)]
        lines.append(f"| {described} | {tokens} | {' | '.join(requests)} | {' | '.join(waits)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.restart", allow_abbrev=False)
    parser.add_argument("--into", type=Path, metavar="FILE", help="replace the table in FILE")
    options = parser.parse_args(arguments)
    if options.into is None:
        print(table())
    else:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(replace_table(text, NAME, table()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
