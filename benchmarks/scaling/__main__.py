"""The command that compares the layouts of a node with 10, 100 and 1,000 pods.

    python -m benchmarks.scaling                           print the tables
    python -m benchmarks.scaling --into docs/scaling.md    replace the tables in that document
    python -m benchmarks.scaling --pods 10                 print only the rows of ten pods, which takes seconds

It needs a checkout, because `tests/virtual.py` provides virtual time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.scaling.cases import Case
from benchmarks.scaling.document import replace_table
from benchmarks.scaling.node import Layout
from benchmarks.scaling.tables import SIZES, TABLES
from benchmarks.scaling.worker import prepare, simulate_one

_PROCESSES = 2


def main(arguments: Sequence[str]) -> int:
    """Simulate, and print the tables or write them into a document. Wrong flags exit with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="Simulates the layouts of a node.", allow_abbrev=False
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--pods", type=int, choices=SIZES, help="only the rows of so many pods")
    chosen.add_argument("--into", type=Path, metavar="FILE", help="replace each table in FILE")
    options = parser.parse_args(arguments)
    tables = {name: table.of(options.pods) for name, table in TABLES.items()} if options.pods else TABLES
    began = time.monotonic()
    # The longest first, so that none of them starts when the other process has nothing left to do.
    cases = sorted({case for table in tables.values() for case in table.cases}, key=_effort, reverse=True)
    with multiprocessing.get_context("spawn").Pool(_PROCESSES, prepare) as pool:
        results = {result.case: result for result in pool.imap_unordered(simulate_one, cases)}
        pool.close()  # leaving the block would kill the processes, even while they write
        pool.join()
    sys.stderr.write(f"{len(cases)} cases in {time.monotonic() - began:.0f} s\n")
    written = {name: "\n".join(table.lines(results)) for name, table in tables.items() if table.cases}
    if options.into is None:
        print("\n\n".join(f"{tables[name].title}\n\n{lines}" for name, lines in written.items()))
    else:
        text = options.into.read_text(encoding="utf-8")
        for name, lines in written.items():
            text = replace_table(text, name, lines)
        options.into.write_text(text, encoding="utf-8")
    return 0


def _effort(case: Case) -> tuple[bool, int]:
    return case.layout in {Layout.OWN, Layout.FILE}, case.pods


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
