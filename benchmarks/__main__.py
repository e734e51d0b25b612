"""The command `python -m benchmarks`. Speed is never a pass or a fail: the status is 0 if everything was measured."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks import flags
from benchmarks.effort import FULL, QUICK, SMOKE, Effort
from benchmarks.figures import BenchmarkError, Curve, Figure, Findings
from benchmarks.machine import cores, open_files
from benchmarks.measures import burst, cold_storm, curves, footprint, latency, lookups, new_connections, throughput
from benchmarks.report import description, goals, results, tables
from benchmarks.servers.bench import Bench

_NOT_MEASURED = 1
_INTERRUPTED = 130

Part = Callable[[Bench, Effort], Sequence[Figure | Curve]]

_PARTS: Mapping[str, tuple[str, Part]] = {
    "hits": ("hits per second, and their memory", throughput.hits),
    "ending": ("hits that end their connection", new_connections.hits),
    "latency": ("the latency of a hit", latency.hits),
    "misses": ("what a miss adds", latency.misses),
    "connections": ("an increasing number of connections", curves.connections),
    "entries": ("an increasing number of entries", curves.entries),
    "memory": ("memory after many different requests", footprint.mixed),
    "starts": ("the time to start", footprint.starts),
    "peers": ("looking up a client", lookups.clients),
    "storm": ("a storm for one target", burst.one_target),
    "distinct": ("a storm for distinct targets", burst.distinct_targets),
    "cold": ("a cold storm", cold_storm.storm),
}

_SHORTER = {
    "--quick": (QUICK, "shorter rounds, for a first look"),
    "--smoke": (SMOKE, "the shortest rounds, which show only that each part works"),
}


def main(arguments: Sequence[str]) -> int:
    """Measure, and print the report.

    Returns:
        0; 1 if a part could not be measured; 130 if a signal ended the run. Wrong flags exit with 2.
    """
    options = _options(arguments)
    # SIGTERM ends a run as Ctrl-C does, so that every process it started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    chosen = cores.choose()
    bench = Bench(chosen, open_files.raise_limit())
    described = description.describe(_command(options), chosen.words)
    try:
        with cores.on(chosen.load):
            findings = _measure(bench, options.only, options.effort)
        document = tables.document(described, findings, time.monotonic() - began)
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        if options.results is not None:
            results.write(options.results, described, findings, document)
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks: interrupted; every process that was started is ended\n")
        return _INTERRUPTED
    except OSError as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return _NOT_MEASURED
    print((tables.markdown if options.markdown else tables.text)(described, findings))
    return _NOT_MEASURED if any(words in bench.left_out for words, _part in _PARTS.values()) else 0


def _measure(bench: Bench, parts: Sequence[str], effort: Effort) -> Findings:
    findings = Findings(left_out=bench.left_out)
    for number, name in enumerate(parts, 1):
        words, part = _PARTS[name]
        sys.stderr.write(f"{number}/{len(parts)} {words} …\n")
        try:
            found = part(bench, effort)
        except (BenchmarkError, OSError) as error:
            # The other parts take minutes; their figures are reported in any case.
            sys.stderr.write(f"benchmarks: {words}: {error}\n")
            bench.left_out[words] = str(error)
            continue
        findings.curves += [each for each in found if isinstance(each, Curve)]
        findings.figures += [each for each in found if isinstance(each, Figure)]
    findings.goals += goals.reached(findings)
    return findings


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the proxy in front of the emulated IMDS, on the loopback of this machine, beside nginx, "
        "HAProxy and Varnish if they are installed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    shorter = parser.add_mutually_exclusive_group()
    for flag, (effort, what) in _SHORTER.items():
        shorter.add_argument(flag, dest="effort", action="store_const", const=effort, default=FULL, help=what)
    names = ", ".join(_PARTS)
    add("--only", type=_parts, default=list(_PARTS), metavar="PART[,PART]", help=f"of {names}; all by default")
    add("--json", type=flags.file, metavar="FILE", help="also write the figures to this file")
    add("--results", type=flags.folder, metavar="FOLDER", help="also write newest.json, newest.md and newest.svg there")
    add("--markdown", action="store_true", help="print the tables as Markdown")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    wanted = text.split(",")
    for name in wanted:
        if name not in _PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(_PARTS)}")
    return [name for name in _PARTS if name in wanted]


def _command(options: argparse.Namespace) -> str:
    """Return the command without the flags that only say where the results go."""
    words = ["python", "-m", "benchmarks"]
    words += [flag for flag, (effort, _what) in _SHORTER.items() if options.effort is effort]
    if options.only != list(_PARTS):
        words += ["--only", ",".join(options.only)]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
