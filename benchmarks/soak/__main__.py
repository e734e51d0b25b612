"""The command `python -m benchmarks.soak`, which `make soak` runs."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

from benchmarks import flags
from benchmarks.figures import BenchmarkError
from benchmarks.soak.driver import Soak
from benchmarks.soak.report import text
from benchmarks.soak.verdict import judge, passed
from tests.loopback import only_loopback

_NICE = 10
_FAILED = 1
_LONGEST_MINUTES = 7 * 24 * 60.0


def main(arguments: Sequence[str]) -> int:
    """Run the soak, and print the verdict.

    Returns:
        0 if nothing failed, 1 otherwise. Wrong flags exit with 2.
    """
    options = _options(arguments)
    only_loopback()
    if hasattr(os, "nice"):
        os.nice(_NICE)
    folder = options.folder or Path(mkdtemp(prefix="soak-"))
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    _say(f"soak: {options.minutes:g} minutes; seed {seed}; logs and samples in {folder}")
    soak = Soak(options.minutes * 60, seed, folder, _say)
    try:
        measured = soak.measure()
    except (BenchmarkError, OSError) as error:
        _say(f"soak: {error}; the logs are in {folder}")
        return _FAILED
    checks = judge(measured)
    report = text(measured, checks, soak.left_out, soak.used_core)
    early = "ended early by a signal; " * soak.stop.is_set()
    _say(f"\n{early}seed {seed}\n\n{report}")
    (folder / "report.txt").write_text(f"{early}seed {seed}\n\n{report}\n", encoding="utf-8")
    return 0 if passed(checks) else _FAILED


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Runs the proxy in front of the emulated IMDS, on the loopback of this machine, with real clients, "
        "faults of IMDS and floods, and judges its memory, descriptors, budget and answers. Ctrl-C ends it with the "
        "verdict so far.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--minutes", type=_minutes, default=10.0, help="how long it runs (%(default)g)")
    add("--seed", type=int, help="what decides about faults and floods; a new one by default")
    add("--folder", type=flags.folder, help="where logs, samples and the report go; a new temporary folder by default")
    return parser.parse_args(arguments)


def _minutes(words: str) -> float:
    try:
        minutes = float(words)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= _LONGEST_MINUTES:
        raise argparse.ArgumentTypeError(f"{words!r} is not a number of minutes above 0, of a week at most")
    return minutes


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
