"""Run every part and print the table. Speed is never a pass or a fail: the status is 0 when all was measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import cores, footprint, latency, report, storm, throughput
from benchmarks.figures import FULL, QUICK, BenchmarkError, Effort, Figure
from benchmarks.processes import Bench

_NOT_MEASURED = 1
_WRONG_FLAGS = 2
_INTERRUPTED = 130
_FILES_WANTED = 2048

_PARTS: Sequence[tuple[str, Callable[[Bench, Effort], list[Figure]]]] = (
    ("the latency of a hit", latency.hits),
    ("hits per second", throughput.hits_per_second),
    ("what a miss adds", latency.misses),
    ("memory", footprint.memory),
    ("the time to start", footprint.starts),
    ("a storm for one target", storm.one_target),
    ("a storm for distinct targets", storm.distinct_targets),
)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; gives 0, 1 where something could not be measured, 2 for wrong flags."""
    options = _options(arguments)
    # A signal ends a run as Ctrl-C does, with every process that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _allow_many_files()
    began = time.monotonic()
    chosen = cores.choose()
    described = report.machine(shlex.join(["python", "-m", "benchmarks", *arguments]), chosen.words)
    try:
        with cores.on(chosen.load):
            figures = _measure(Bench(chosen), QUICK if options.quick else FULL)
        written = report.document(described, figures, time.monotonic() - began)
        if options.json is not None:
            options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    except KeyboardInterrupt:
        sys.stderr.write("benchmarks: interrupted; every process that was started is ended\n")
        return _INTERRUPTED
    except (BenchmarkError, OSError) as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return _NOT_MEASURED
    print((report.markdown if options.markdown else report.table)(described, figures))
    return 0


def _measure(bench: Bench, effort: Effort) -> list[Figure]:
    figures = []
    for number, (name, part) in enumerate(_PARTS, 1):
        sys.stderr.write(f"{number}/{len(_PARTS)} {name} …\n")
        figures += part(bench, effort)
    return figures


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the proxy in front of the emulated IMDS, all on this machine's loopback.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="shorter rounds, for a look or a smoke test")
    parser.add_argument("--json", type=_file, metavar="FILE", help="also write the figures there")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args(arguments)


def _file(text: str) -> Path:
    """Take the name of a file that can be written, before minutes are spent on what goes into it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no file in a folder that exists")
    return path


def _allow_many_files() -> None:
    """A storm needs a descriptor for each client, here and in the proxy, which inherits the limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415  # there is none on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(_FILES_WANTED, hard)
        if soft not in (resource.RLIM_INFINITY, -1) and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
