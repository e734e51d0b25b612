"""The table of faults in docs/reliability.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.kit import ROOT
from tests.system.faults.clients import KINDS
from tests.system.faults.run import Fault, Outcome

PAGE = ROOT / "docs" / "reliability.md"
MARK = "faults"
_HEAD = "| fault | clients get | well after | IMDS sees | worst second | memory | test |\n" + "|---" * 7 + "|"
_SOON = 2.0


def lines(faults: Mapping[str, Fault], outcomes: Mapping[str, Outcome]) -> str:
    """Return the table."""
    return "\n".join([_HEAD, *(_row(faults[name], outcome) for name, outcome in outcomes.items())])


def rows(page: Path = PAGE) -> dict[str, str]:
    """Return the rows of the table in the page, by their tests: the words for the fault."""
    _, _, after = page.read_text(encoding="utf-8").partition(f"<!-- {MARK} -->\n")
    found = re.match(r"(?:\|.*\n)*", after)
    assert found is not None
    cells = [line.strip("|\n").split(" | ") for line in found[0].splitlines()[2:]]
    assert len({each[-1] for each in cells}) == len(cells), "two rows name one test"
    return {each[-1].strip(" `"): each[0].strip() for each in cells}


def _row(fault: Fault, outcome: Outcome) -> str:
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(kind.name for kind in KINDS):
        if name in outcome.got:
            kinds.setdefault(_answers(outcome.got[name]), []).append(name)
    got = "; ".join(f"{', '.join(names)}: {answers}" for answers, names in kinds.items()) or "nothing"
    cells = (
        *(fault.words, got, f"{outcome.well_after:.1f} s", str(outcome.arrived), str(outcome.worst)),
        *(f"{max(0.0, outcome.grown / 2**20):+.1f} MiB", f"`{fault.name}`"),
    )
    return f"| {' | '.join(cells)} |"


def _answers(words: Mapping[str, float]) -> str:
    each = sorted(words.items())
    return ", ".join(word if longest < _SOON else f"{word} within {longest:.0f} s" for word, longest in each)
