"""The command that lets every fault happen at full size, and prints the table of docs/reliability.md.

    TEST_LONG=1 python -m tests.system.faults                                 print it
    TEST_LONG=1 python -m tests.system.faults --into docs/reliability.md      replace it in that document

It takes about ten minutes, and needs root: it moves into a network namespace of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.scaling.document import replace_table
from tests import isolation
from tests.size import LONG
from tests.system.faults import table
from tests.system.faults.matrix import ALL, GROUPS, happen
from tests.system.faults.run import Outcome


def main(arguments: Sequence[str]) -> int:
    """Print the table or write it into a document. A fault in which a promise was not kept exits with 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults", allow_abbrev=False)
    parser.add_argument("--into", type=Path, metavar="FILE", help="replace the table in FILE")
    options = parser.parse_args(arguments)
    if not LONG or not isolation.move_to_own_network():
        parser.error("set TEST_LONG=1, and run it as root on Linux")
    outcomes: dict[str, Outcome] = {}
    failed = False
    for group in GROUPS:
        with tempfile.TemporaryDirectory() as folder:
            results = asyncio.run(happen(group, Path(folder)))
        for name, result in results.items():
            if isinstance(result, Outcome):
                outcomes[name] = result
            else:
                failed = True
                sys.stderr.write(f"{name}: {type(result).__name__}: {result}\n")
    written = table.lines(ALL, outcomes)
    if failed or options.into is None:
        sys.stdout.write(f"{written}\n")
    else:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(replace_table(text, table.MARK, written), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
