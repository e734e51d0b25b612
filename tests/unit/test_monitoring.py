"""The alerts, the dashboard and the documents name metrics and labels that the proxy exports, and only those."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit import ROOT
from tests.monitoring import exported
from tests.promtool import MISSING, program, promtool

pytestmark = pytest.mark.any_python

ALERTS = ROOT / "config" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "config" / "grafana" / "imdsproxy.json"
OPERATIONS = ROOT / "docs" / "operations.md"
MONITORING = ROOT / "docs" / "monitoring.md"

BY_PROMETHEUS = frozenset({"job", "instance"})
"""Labels that every series has from its target."""
OF_PROMETHEUS = {"up": frozenset[str]()}
"""Metrics that Prometheus itself makes."""
_WORDS = frozenset({"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool"})
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?\{([^{}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^()]*)\)")


def metrics_of(expression: str) -> dict[str, set[str]]:
    """Return the metrics that a PromQL expression names, and the labels that it names of each.

    A label of `by` or `without` counts for every metric of the expression.
    """
    found: dict[str, set[str]] = {}

    def selector(match: re.Match[str]) -> str:
        labels = {part.partition("=")[0].rstrip("!~ ").strip() for part in match[2].split(",") if part.strip()}
        assert match[1], f"a selector without a name: {match[0]}"
        found.setdefault(match[1], set()).update(labels)
        return f" {match[1]} "

    plain = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)  # the values of labels
    plain = re.sub(r"\[[^\]]*\]", "", plain)
    plain = _SELECTOR.sub(selector, plain)
    grouped = {label.strip() for part in _GROUPING.findall(plain) for label in part.split(",") if label.strip()}
    plain = _GROUPING.sub(" ", plain)
    for name in re.findall(r"(?<![\w.])([a-zA-Z_:][a-zA-Z0-9_:]*)\b(?!\s*\()", plain):
        if name not in _WORDS:
            found.setdefault(name, set())
    return {name: labels | grouped for name, labels in found.items()}


def unknown(expression: str) -> list[str]:
    """Return each name of an expression that the proxy does not export."""
    wrong = []
    for name, labels in metrics_of(expression).items():
        known = OF_PROMETHEUS.get(name) if name in OF_PROMETHEUS else exported().get(name, ("", None))[1]
        if known is None:
            wrong.append(name)
        else:
            wrong += [f"{name}{{{label}}}" for label in sorted(labels - known - BY_PROMETHEUS)]
    return wrong


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


EXPRESSIONS = [
    *((rule["alert"], rule["expr"]) for rule in rules()),
    *((panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]),
]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_name_in_an_expression_is_exported(where: str, expression: str) -> None:
    assert not unknown(expression)
    assert metrics_of(expression)


@pytest.mark.skipif(program() is None, reason=MISSING)
def test_every_expression_is_valid_promql(tmp_path: Path) -> None:
    plain = (text.replace("$__rate_interval", "5m").replace("$instance", ".*") for _, text in EXPRESSIONS)
    records = [{"record": f"imdsproxy:number:{number}", "expr": text} for number, text in enumerate(plain)]
    written = tmp_path / "rules.yaml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "expressions", "rules": records}]}))
    status, said = promtool("check", "rules", str(written))
    assert status == 0, said
    assert f"{len(EXPRESSIONS)} rules found" in said


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("imdsproxy_reddy == 0", ["imdsproxy_reddy"]),
        ('rate(imdsproxy_requests_total{result="hit"}[5m])', ["imdsproxy_requests_total{result}"]),
        ("sum by (outcom) (imdsproxy_requests_total)", ["imdsproxy_requests_total{outcom}"]),
        ('imdsproxy_requests_total{outcome=~"a,b=c|{}"} > 1', []),
        ("imdsproxy_ready and up unless imdsproxy_reddy", ["imdsproxy_reddy"]),
        ("histogram_quantile(0.5, sum by (le) (rate(imdsproxy_request_seconds_bucket[1m])))", []),
        ("sum by (le) (rate(imdsproxy_request_second_bucket[1m]))", ["imdsproxy_request_second_bucket"]),
    ],
)
def test_a_wrong_name_in_an_expression_is_found(expression: str, expected: list[str]) -> None:
    assert unknown(expression) == expected


def test_labels_that_legends_and_annotations_name_are_in_the_results() -> None:
    for panel in panels():
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            by = re.search(r"\bby \(([^()]*)\)", target["expr"])
            if by:
                kept = {label.strip() for label in by[1].split(",")}
            else:
                kept = set() if target["expr"].startswith(("min(", "max(", "sum(")) else set(BY_PROMETHEUS)
            assert legend <= kept, panel["title"]
    for rule in rules():
        named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        labels = {label for name in metrics_of(rule["expr"]) for label in exported().get(name, ("", frozenset()))[1]}
        assert named <= labels | BY_PROMETHEUS, rule["alert"]


def test_variables_of_the_dashboard_name_exported_metrics() -> None:
    variables = json.loads(DASHBOARD.read_text())["templating"]["list"]
    queries = [each["query"]["query"] for each in variables if each["type"] == "query"]
    assert queries == ["label_values(imdsproxy_build_info, instance)"]
    assert "imdsproxy_build_info" in exported()


def test_every_panel_has_its_own_place_and_says_what_it_shows() -> None:
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= own
    assert all(panel["description"] for panel in panels())


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_has_its_page(rule: dict[str, Any]) -> None:
    headings = re.findall(r"^### (\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert rule["alert"] in headings
    assert rule["labels"]["severity"] in {"critical", "warning"}


def test_operations_page_has_no_alert_that_does_not_exist() -> None:
    headings = re.findall(r"^### (\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]


@pytest.mark.parametrize("page", [OPERATIONS, MONITORING], ids=lambda page: page.name)
def test_metrics_that_a_page_names_are_exported(page: Path) -> None:
    named = set(re.findall(r"\b(?:imdsproxy|process|python)_\w+", page.read_text())) - {"python_version"}
    families = {*exported(), *(re.sub("_(bucket|count|sum)$", "", name) for name in exported())}
    assert not named - families


def test_table_of_metrics_is_complete_with_types_and_labels() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| .+ \|$", MONITORING.read_text(), re.MULTILINE)
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    real = {}
    for name, (kind, labels) in exported().items():
        if kind == "histogram":
            real[re.sub("_(bucket|count|sum)$", "", name)] = kind, labels - {"le"}
        else:
            real[name] = kind, labels
    assert documented == real
