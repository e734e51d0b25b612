"""The simulation of a node's layouts keeps the budgets, and docs/scaling.md has its figures."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import __main__ as program
from benchmarks.scaling.cases import Case, Result, Workload
from benchmarks.scaling.document import replace_table
from benchmarks.scaling.node import IMDS_TAKES, Layout
from benchmarks.scaling.simulation import simulate
from benchmarks.scaling.tables import TABLES
from tests.kit import ROOT
from tests.size import size

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only"),
    pytest.mark.no_cover,  # measuring coverage would double its time, and other tests reach the same branches
]

ONE_BUDGET = (Layout.FILE, Layout.CHAINED, Layout.DAEMON)
SLOW = size(short={Workload.STEADY_FAST}, full=set())
"""The polls of every second take ten times as long as any other workload."""
BY_PODS = [workload for workload in Workload if workload not in {Workload.RENEWAL, Workload.ARRIVAL, *SLOW}]
LABELS = {"pods", "layout", "with", "targets", "asked"}

result = cache(simulate)


def figures(layout: Layout, workload: Workload, pods: int = 10, **more: Any) -> Result:
    return result(Case(workload=workload, layout=layout, pods=pods, **more))


def quick(case: Case) -> bool:
    """Whether it takes less than about a second; in `make test`, less than a few tenths."""
    if case.layout is Layout.DAEMON and case.workload in {Workload.SAME, Workload.OWN, Workload.STORM}:
        return case.pods <= size(short=100, full=10_000)
    return case.pods == 10 or (case.pods == 100 and case.workload is Workload.OWN and size(short=False, full=True))


def in_document(name: str) -> list[str]:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    return text.partition(f"<!-- {name} -->\n")[2].partition("\n\n")[0].splitlines()


@pytest.mark.parametrize("name", TABLES)
def test_document_has_every_table_and_row(name: str) -> None:
    table = TABLES[name]
    labels = [(column, cell) for column, cell in table.columns if column in LABELS]
    some = figures(Layout.DAEMON, Workload.SAME)
    head, _, *rows = in_document(name)
    assert head == f"| {' | '.join(column for column, _ in table.columns)} |"
    told = [row.strip("| ").split(" | ")[: len(labels)] for row in rows]
    assert told == [[cell(replace(some, case=case)) for _, cell in labels] for case in table.cases]


@pytest.mark.large
@pytest.mark.parametrize("name", TABLES)
def test_documented_figures_equal_the_simulation(name: str) -> None:
    table = TABLES[name]
    _, _, *rows = in_document(name)
    quick_cases = [case for case in table.cases if quick(case)]
    # The polls of every second take ten times as long as any other table; one row of them is enough here.
    fewer = size(short=quick_cases[:1], full=quick_cases) if name == "fast" else quick_cases
    tried = {case: row for case, row in zip(table.cases, rows, strict=True) if case in fewer}
    for case, row in tried.items():
        cells = (cell(result(case)) for _, cell in table.columns)
        assert row == f"| {' | '.join(cells)} |", "python -m benchmarks.scaling --into docs/scaling.md updates it"


@pytest.mark.parametrize("workload", BY_PODS)
@pytest.mark.parametrize("layout", ONE_BUDGET)
def test_layouts_with_one_budget_keep_it_in_any_second(layout: Layout, workload: Workload) -> None:
    found = figures(layout, workload)
    assert 1 <= found.most <= 5
    assert found.refused == 0
    assert found.unserved == 0


@pytest.mark.parametrize("layout", [Layout.NONE, Layout.OWN])
def test_layouts_with_own_budgets_exceed_the_limit(layout: Layout) -> None:
    found = figures(layout, Workload.OWN)
    assert found.most > 5
    assert found.refused == found.sent - found.calls


@pytest.mark.parametrize("workload", [Workload.SAME, Workload.OWN, Workload.MIX])
def test_chain_of_two_caches_sends_as_many_requests_as_one(workload: Workload) -> None:
    distinct = {Workload.SAME: 2, Workload.OWN: 10, Workload.MIX: 6}[workload]
    assert figures(Layout.CHAINED, workload).sent == figures(Layout.DAEMON, workload).sent == distinct


@pytest.mark.parametrize("workload", [Workload.SAME, Workload.OWN, Workload.MIX])
def test_sidecars_with_one_file_send_one_request_each(workload: Workload) -> None:
    found = figures(Layout.FILE, workload)
    assert found.sent == found.calls


def test_first_versions_request_is_counted() -> None:
    sidecars = figures(Layout.FILE, Workload.STORM)
    assert sidecars.sent == 10 * 3, "each asks for the versions, the instance document and a token"
    chained = figures(Layout.CHAINED, Workload.STORM)
    assert chained.sent == 12, "the versions and the instance document once, and ten tokens"


def test_separate_identity_budget_is_a_second_budget() -> None:
    found = figures(Layout.DAEMON, Workload.OWN, pods=100, identity_apart=True)
    assert 5 < found.most <= 20
    assert found.refused == 0


def test_case_has_the_same_figures_in_each_run() -> None:
    case = Case(workload=Workload.STORM, layout=Layout.FILE, pods=size(short=10, full=30), beside=True, away_for=5.0)
    assert simulate(case) == simulate(case)


def test_no_answer_is_faster_than_imds() -> None:
    found = figures(Layout.NONE, Workload.STEADY)
    assert found.half == pytest.approx(IMDS_TAKES)


def test_table_replaces_only_its_own_old_version() -> None:
    text = "# a\n\n<!-- x -->\n| old |\n|---|\n| 1 |\n\ntext | more\n\n<!-- y -->\n| kept |\n"
    assert replace_table(text, "x", "| new |") == "# a\n\n<!-- x -->\n| new |\n\ntext | more\n\n<!-- y -->\n| kept |\n"
    assert replace_table(text, "y", "| new |").endswith("| 1 |\n\ntext | more\n\n<!-- y -->\n| new |\n")
    with pytest.raises(ValueError, match="<!-- z -->"):
        replace_table(text, "z", "| new |")


def test_command_writes_the_simulated_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "TABLES", {"same": TABLES["same"].of(10)})
    path = tmp_path / "scaling.md"
    path.write_text("<!-- same -->\n\nThe end.\n", encoding="utf-8")
    assert program.main(["--into", str(path)]) == 0
    lines = "\n".join(in_document("same")[:7])
    assert path.read_text(encoding="utf-8") == f"<!-- same -->\n{lines}\n\nThe end.\n"
    assert program.main(["--pods", "10"]) == 0
    assert lines in capsys.readouterr().out


def test_wrong_flags_end_with_status_2() -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--pods", "11"])
    assert ended.value.code == 2
