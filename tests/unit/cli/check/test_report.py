"""The findings as text and as JSON."""

from __future__ import annotations

import json

import pytest

from imdsproxy import __version__
from imdsproxy.cli.check import report
from imdsproxy.cli.check.finding import NOT_CHECKED, Finding, failure, ok, skipped, warning

ALL: dict[str, Finding] = {
    "settings": ok("all at their defaults"),
    "answer": ok("IMDS/1 answers", asked="the proxy at http://127.0.0.1:8254"),
    "guard": failure("guard-metadata", "http://10.0.0.9 answers 200", "remove it", asked="http://10.0.0.9"),
    "web-proxy": warning("web-proxy-catches", "http_proxy is set", "set no_proxy"),
    "identity": skipped("identity-not-asked", "not asked"),
    "node": skipped(NOT_CHECKED, "not checked"),
}
PLAIN = """\
ok       settings   all at their defaults
ok       answer     IMDS/1 answers (asked the proxy at http://127.0.0.1:8254)
failure  guard      http://10.0.0.9 answers 200
                    next: remove it
warning  web-proxy  http_proxy is set
                    next: set no_proxy
skipped  identity   not asked

1 failure, 1 warning; 2 not checked
"""


def test_text_is_aligned_with_the_advice_below() -> None:
    assert report.text(ALL, colour=False) == PLAIN


def test_colour_changes_nothing_but_the_status() -> None:
    coloured = report.text(ALL, colour=True)
    assert coloured.startswith("\x1b[32mok     \x1b[0m  settings")
    for code in ("32", "2", "33", "31", "0"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == PLAIN


@pytest.mark.parametrize(
    ("findings", "total"),
    [
        ({"a": ok("x")}, "all well\n"),
        ({"a": ok("x"), "b": skipped("c", "y")}, "all well; 1 not checked\n"),
        ({"a": failure("c", "x", "y"), "b": failure("d", "x", "y")}, "2 failures\n"),
    ],
)
def test_text_ends_with_the_count(findings: dict[str, Finding], total: str) -> None:
    assert report.text(findings, colour=False).endswith(f"\n\n{total}")


def test_control_characters_of_others_are_escaped() -> None:
    shown = report.text({"answer": failure("imds-other", "Server \x1b[2J\nok  all", "x")}, colour=False)
    assert "Server \\x1b[2J\\nok  all" in shown


def test_json_has_the_documented_shape() -> None:
    found = json.loads(report.as_json(ALL))
    assert {name: found[name] for name in found if name != "steps"} == {
        "version": 1,
        "imdsproxy": __version__,
        "status": "failure",
        "exit_status": 2,
    }
    assert [step["step"] for step in found["steps"]] == list(ALL)
    assert found["steps"][0] == {
        "step": "settings",
        "status": "ok",
        "code": None,
        "found": "all at their defaults",
        "next": None,
        "asked": None,
    }
    assert found["steps"][2] == {
        "step": "guard",
        "status": "failure",
        "code": "guard-metadata",
        "found": "http://10.0.0.9 answers 200",
        "next": "remove it",
        "asked": "http://10.0.0.9",
    }
