"""`docs/troubleshooting.md` explains every finding, and nothing else."""

from __future__ import annotations

import json
import re

from imdsproxy.cli.check import report
from imdsproxy.cli.check.finding import EXIT, Finding, Status
from imdsproxy.cli.check.steps.order import STEPS, judge_without_settings
from tests.kit import ROOT
from tests.unit.cli.check.test_steps import FLAT

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def documented() -> dict[tuple[str, str], str]:
    """Return the status of each finding in the page, by heading and code."""
    found = {}
    for section in TEXT.split("\n### ")[1:]:
        heading, _, body = section.partition("\n")
        for codes, status in re.findall(r"^\| (`.*?`) \| (\w+) \|", body.partition("\n## ")[0], re.MULTILINE):
            for code in codes.split(", "):
                found[heading, code.strip("`")] = status
    return found


def real() -> dict[tuple[str, str], str]:
    """Return the status of each finding that the steps make, by step and code."""
    findings: list[tuple[str, Finding]] = [(step, STEPS[step](facts)) for step, _, _, facts in FLAT]
    findings += judge_without_settings("a mistake").items()
    return {(step, finding.code): finding.status.value for step, finding in findings if finding.code}


def test_page_has_every_finding_with_its_status_under_its_step() -> None:
    of_the_page = documented()
    for (step, code), status in real().items():
        headings = [heading for heading, name in of_the_page if name == code]
        assert len(headings) == 1, f"{code} is not in one table"
        assert of_the_page[headings[0], code] == status
        assert code == "not-checked" or step in headings[0].split(", ")


def test_page_has_no_finding_that_no_step_makes() -> None:
    assert {code for _, code in documented()} == {code for _, code in real()}


def test_page_has_every_step() -> None:
    headings = re.findall(r"^### (.*)$", TEXT, re.MULTILINE)
    assert {step for heading in headings for step in heading.split(", ")} == set(STEPS)


def test_page_has_the_exit_statuses() -> None:
    for status in Status:
        assert re.search(rf"^\| `{status}` \|.*\| {EXIT.get(status, 0)} \|$", TEXT, re.MULTILINE)


def test_json_of_the_page_has_the_shape_of_the_command() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    shown = json.loads(example)
    printed = json.loads(report.as_json({"web-proxy": Finding(Status.WARNING, "found")}))
    assert list(shown) == list(printed)
    assert list(shown["steps"][0]) == list(printed["steps"][0])
    assert (shown["version"], shown["status"], shown["exit_status"]) == (printed["version"], "warning", 1)
