"""The table of attack cases in `docs/security.md` is complete: each has its tests, and each such test is in it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

import pytest

from tests.integration.attacks.listeners import KINDS
from tests.integration.attacks.raw_cases import CASES, NOT_BYTES
from tests.integration.attacks.test_hostile_answers import HOSTILE
from tests.integration.attacks.ways import SERVERS
from tests.kit import ROOT

pytestmark = pytest.mark.any_python

TESTS = ROOT / "tests"
NUMBERS = set(range(1, 24))
RAW = {case.number for case in CASES}
ANSWERS = {case.number for case in HOSTILE}
TABLES = {
    "integration/attacks/test_raw_cases.py": RAW,
    "system/test_attack_cases.py": RAW,
    "integration/attacks/test_hostile_answers.py": ANSWERS,
}
"""The files whose tests have their numbers from a table."""
WINDOWS_ONLY = {23}


def marked() -> dict[int, set[str]]:
    """Return the files with tests of each attack case, by their marks."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        name = path.relative_to(TESTS).as_posix()
        for number in TABLES.get(name, ()):
            found[number].add(name)
        text = path.read_text(encoding="utf-8")
        if "mark.attack(" not in text or name in TABLES:
            continue
        for function in ast.walk(ast.parse(text)):
            for decorator in function.decorator_list if isinstance(function, ast.FunctionDef) else ():
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.attack":
                    for argument in decorator.args:
                        found[ast.literal_eval(argument)].add(name)
    return found


def rows() -> dict[int, set[str]]:
    """Return the files that the document names for each attack case."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    section = text.partition("\n## Attack cases\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| (\d+) \|.*\|([^|]*)\|$", section, re.MULTILINE)
    return {int(number): set(re.findall(r"`([^`]+)`", files)) for number, files in found}


def test_table_names_every_case_and_exactly_the_files_with_its_tests() -> None:
    assert rows() == dict(sorted(marked().items()))
    assert rows().keys() == NUMBERS


def test_every_case_goes_on_every_way_or_says_why_not() -> None:
    """What is bytes goes to each server, listener and path, and through the redirect; `NOT_BYTES` has the reasons."""
    assert RAW | NOT_BYTES.keys() == NUMBERS
    assert not RAW & NOT_BYTES.keys()
    assert all(NOT_BYTES.values())
    assert NOT_BYTES.keys() >= ANSWERS
    assert SERVERS == ("fast path", "without fast path", "uvicorn-httptools", "uvicorn-h11")
    assert KINDS == ("tcp", "unix", "admin")
    files = marked()
    for number in NOT_BYTES.keys() - WINDOWS_ONLY:
        assert any(not name.startswith("windows/") for name in files[number]), number
    assert any(name.startswith("windows/") for name in files[23])


def test_names_in_the_tables_are_unique() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)
    assert len({case.name for case in HOSTILE}) == len(HOSTILE)
