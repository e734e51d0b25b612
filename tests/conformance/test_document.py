"""`docs/conformance.md` has each rule once, with a test that exists or a reason."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache

import pytest

from tests.conformance.document import BEGIN, PAGE, RULES, written
from tests.kit import ROOT

pytestmark = pytest.mark.any_python


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_page_has_the_rules_as_they_are() -> None:
    """After a change: `python -m tests.conformance.document`."""
    assert PAGE.read_text(encoding="utf-8").partition(BEGIN)[2] == f"\n{written()}"


def test_each_rule_is_there_once_and_has_a_test_or_a_reason() -> None:
    assert {
        name: count for name, count in Counter((rule.suite, rule.name) for rule in RULES).items() if count > 1
    } == {}
    assert [rule for rule in RULES if not rule.test and not rule.why] == []
    assert [rule for rule in RULES if not (rule.words and rule.source)] == []


def test_each_test_exists() -> None:
    for named in {rule.test for rule in RULES if rule.test}:
        file, _, function = named.partition("::")
        assert function in functions_of(file), named
