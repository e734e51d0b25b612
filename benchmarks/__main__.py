"""Run every part and print the tables. Speed is never a pass or a fail: the status is 0 when all was measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import cold, cores, curves, footprint, goals, latency, machine, report, results, storm, throughput
from benchmarks.effort import FULL, QUICK, Effort
from benchmarks.figures import BenchmarkError, Curve, Figure, Findings
from benchmarks.servers import Bench

_NOT_MEASURED = 1
_INTERRUPTED = 130
_FILES_WANTED = 20_000
_FILES_WHERE_NOBODY_TELLS = 512

Part = Callable[[Bench, Effort], Sequence[Figure | Curve]]

_PARTS: Mapping[str, tuple[str, Part]] = {
    "hits": ("hits per second, and their memory", throughput.hits),
    "latency": ("the latency of a hit", latency.hits),
    "misses": ("what a miss adds", latency.misses),
    "connections": ("more and more connections", curves.connections),
    "entries": ("more and more entries", curves.entries),
    "memory": ("memory after many different requests", footprint.mixed),
    "starts": ("the time to start", footprint.starts),
    "storm": ("a storm for one target", storm.one_target),
    "distinct": ("a storm for distinct targets", storm.distinct_targets),
    "cold": ("a storm in the cold", cold.storm),
}


def main(arguments: Sequence[str]) -> int:
    """Measure and print; gives 0, 1 where a part could not be measured, 2 for wrong flags."""
    options = _options(arguments)
    # A signal ends a run as Ctrl-C does, with every process that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    chosen = cores.choose()
    bench = Bench(chosen, _allow_many_files())
    described = machine.described(_command(options), chosen.words)
    try:
        with cores.on(chosen.load):
            findings = _measure(bench, options.only, QUICK if options.quick else FULL)
        document = report.document(described, findings, time.monotonic() - began)
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
    print((report.markdown if options.markdown else report.text)(described, findings))
    return _NOT_MEASURED if any(words in bench.left_out for words, _part in _PARTS.values()) else 0


def _measure(bench: Bench, parts: Sequence[str], effort: Effort) -> Findings:
    findings = Findings(left_out=bench.left_out)
    for number, name in enumerate(parts, 1):
        words, part = _PARTS[name]
        sys.stderr.write(f"{number}/{len(parts)} {words} …\n")
        try:
            told = part(bench, effort)
        except (BenchmarkError, OSError) as error:
            # The other parts took minutes, or will: they are told all the same.
            sys.stderr.write(f"benchmarks: {words}: {error}\n")
            bench.left_out[words] = str(error)
            continue
        findings.curves += [found for found in told if isinstance(found, Curve)]
        findings.figures += [found for found in told if isinstance(found, Figure)]
    findings.goals += goals.reached(findings)
    return findings


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the proxy in front of the emulated IMDS, all on this machine's loopback, beside nginx, "
        "HAProxy and Varnish where they are installed.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="shorter rounds, for a look or a smoke test")
    names = ", ".join(_PARTS)
    add("--only", type=_parts, default=list(_PARTS), metavar="PART[,PART]", help=f"of {names}; by default all")
    add("--json", type=_file, metavar="FILE", help="also write the figures there")
    add("--results", type=_folder, metavar="FOLDER", help="also write newest.json, newest.md and newest.svg there")
    add("--markdown", action="store_true", help="print the tables as Markdown")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    wanted = text.split(",")
    for name in wanted:
        if name not in _PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(_PARTS)}")
    return [name for name in _PARTS if name in wanted]


def _file(text: str) -> Path:
    """Take the name of a file that can be written, before minutes are spent on what goes into it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no file in a folder that exists")
    return path


def _folder(text: str) -> Path:
    """Take a folder, which is made where there is none yet."""
    path = Path(text)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder and cannot be made: {error.strerror}") from None
    return path


def _command(options: argparse.Namespace) -> str:
    """Give the command as far as it says what was measured, not where it was written."""
    words = ["python", "-m", "benchmarks"]
    if options.quick:
        words.append("--quick")
    if options.only != list(_PARTS):
        words += ["--only", ",".join(options.only)]
    return shlex.join(words)


def _allow_many_files() -> int:
    """Raise the number of files that this process, and each that it starts, may have open; gives the number."""
    with contextlib.suppress(ImportError):
        import resource  # noqa: PLC0415  # there is none on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = (resource.RLIM_INFINITY, -1)
        wanted = _FILES_WANTED if hard in unlimited else min(_FILES_WANTED, hard)
        if soft in unlimited or soft >= wanted:
            return wanted
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
        return soft
    return _FILES_WHERE_NOBODY_TELLS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
