"""The labels that are known beforehand are those that the code can produce."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import imdsproxy
from imdsproxy.ops.metric_labels import ACCESS, REASONS, reason_label, status_class
from imdsproxy.protocol.cache_status import ENDING
from imdsproxy.protocol.messages import Failure, FailureKind

PACKAGE = Path(imdsproxy.__file__).parent
HELPERS = {"_bad": 400, "_forbidden": 403}
"""Functions that make a refusal of a reason."""
PAGES = {"server/operations.py", "server/purge.py"}
"""Requests under `/-/` are not counted."""


def refusals() -> Iterator[tuple[str, int]]:
    """Yield the reason and status of every refusal that the code writes out."""
    for path in PACKAGE.rglob("*.py"):
        if str(path.relative_to(PACKAGE)) in PAGES:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            values = [each.value for each in node.args if isinstance(each, ast.Constant)]
            if node.func.id in HELPERS and values:
                yield str(values[0]), HELPERS[node.func.id]
            elif node.func.id == "Refusal" and len(values) > 1 and isinstance(values[0], int):
                reason = node.args[1]
                if isinstance(reason, ast.Constant):
                    yield str(reason.value), values[0]
                elif isinstance(reason, ast.Name) and reason.id == "ENDING":
                    yield ENDING, values[0]


def test_every_reason_of_a_refusal_is_known_with_its_status_class() -> None:
    found = {reason: status_class(status) for reason, status in refusals()}
    found |= {kind.value: status_class(Failure(kind, "").refusal(1).status) for kind in FailureKind}
    found[ACCESS] = status_class(403)  # written as access-RULE
    assert len(found) > 25
    assert found == {reason: status for reason, status in REASONS.items() if status != "2xx"}


@pytest.mark.parametrize(
    ("status", "expected"), [(200, "2xx"), (304, "3xx"), (599, "5xx"), (99, "other"), (600, "other")]
)
def test_status_class(status: int, expected: str) -> None:
    assert status_class(status) == expected


@pytest.mark.parametrize(
    ("detail", "expected"), [(None, "none"), ("budget", "budget"), ("access-web", "access"), ("new", "other")]
)
def test_reason_label(detail: str | None, expected: str) -> None:
    assert reason_label(detail) == expected
