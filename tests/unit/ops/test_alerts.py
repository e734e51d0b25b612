"""Each alert fires when it should, and not otherwise, by Prometheus's own test runner."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit import ROOT
from tests.promtool import MISSING, program, promtool

ALERTS = ROOT / "config" / "prometheus" / "alerts.yaml"
SCRAPE = ROOT / "config" / "prometheus" / "scrape.yaml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
NAMES = [rule["alert"] for rule in RULES]

pytestmark = pytest.mark.any_python
with_promtool = pytest.mark.skipif(program() is None, reason=MISSING)

WHERE = {"instance": "vm-1:8256", "job": "imdsproxy"}
TOKEN = {"audience": "https://vault.azure.net", "identity": "default"}


@dataclass
class Case:
    """Series, one sample a minute, and whether the alert fires after an hour."""

    alert: str
    fires: bool
    series: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of the alert that come from the series, besides those of the target."""
    why: str = ""


def responses(reason: str) -> str:
    return f'imdsproxy_responses_total{{status_class="4xx",reason="{reason}"}}'


REMAINING = 'imdsproxy_token_remaining_seconds{audience="https://vault.azure.net",identity="default"}'
FAILING = 'imdsproxy_token_renewal_failing{audience="https://vault.azure.net",identity="default"}'
THROTTLED = 'imdsproxy_upstream_requests_total{endpoint="instance",status="429"}'
CASES = (
    Case("ImdsproxyDown", fires=True, series={"up": "1x50 0x20"}),
    Case("ImdsproxyDown", fires=False, series={"up": "1x58 0x1"}, why="a restart"),
    Case("ImdsproxyDown", fires=False, series={'up{job="other"}': "0x70"}, why="another job"),
    Case("ImdsproxyUpstreamDown", fires=True, series={"imdsproxy_upstream_up": "1x40 0x30"}),
    Case("ImdsproxyUpstreamDown", fires=False, series={"imdsproxy_upstream_up": "1x57 0x1 1x10"}, why="an update"),
    Case("ImdsproxyTokenRenewalFailing", fires=True, series={REMAINING: "4800-60x70", FAILING: "1x70"}, labels=TOKEN),
    Case("ImdsproxyTokenRenewalFailing", fires=True, series={REMAINING: "0x70", FAILING: "1x70"}, labels=TOKEN),
    Case("ImdsproxyTokenRenewalFailing", fires=False, series={REMAINING: "86400-60x70", FAILING: "1x70"}),
    Case("ImdsproxyTokenRenewalFailing", fires=False, series={REMAINING: "4800-60x70", FAILING: "0x70"}),
    *(
        Case("ImdsproxyRefusingClients", fires=True, series={responses(reason): "0+1x70"}, labels={"reason": reason})
        for reason in ("budget", "connections", "memory")
    ),
    Case("ImdsproxyRefusingClients", fires=False, series={responses("budget"): "0x70"}),
    Case("ImdsproxyRefusingClients", fires=False, series={responses("metadata-header"): "0+1x70"}, why="their fault"),
    Case("ImdsproxyRefusingClients", fires=False, series={responses("budget"): "0x57 3x10"}, why="one burst"),
    Case("ImdsproxyUpstreamThrottling", fires=True, series={THROTTLED: "0x55 1x10"}, labels={"status": "429"}),
    Case("ImdsproxyUpstreamThrottling", fires=False, series={THROTTLED: "0x20 1x50"}),
    Case("ImdsproxyUpstreamThrottling", fires=False, series={THROTTLED.replace("429", "500"): "0+1x70"}),
    Case(
        "ImdsproxyServingStale",
        fires=True,
        series={responses("stale-if-error"): "0+2x70"},
        labels={"reason": "stale-if-error"},
    ),
    Case("ImdsproxyServingStale", fires=False, series={responses("stale-if-error"): "0+2x20 40x50"}, why="it is over"),
    Case("ImdsproxyEventLoopLagging", fires=True, series={"imdsproxy_event_loop_lag_seconds": "0x40 0.3x30"}),
    Case("ImdsproxyEventLoopLagging", fires=False, series={"imdsproxy_event_loop_lag_seconds": "0x58 0.3 0x10"}),
    Case(
        "ImdsproxyCacheFull",
        fires=True,
        series={
            "imdsproxy_cache_evictions_total": "0+5x70",
            "imdsproxy_cache_bytes": "99x70",
            "imdsproxy_cache_max_bytes": "100x70",
        },
    ),
    Case(
        "ImdsproxyCacheFull",
        fires=False,
        series={
            "imdsproxy_cache_evictions_total": "0x70",
            "imdsproxy_cache_bytes": "99x70",
            "imdsproxy_cache_max_bytes": "100x70",
        },
        why="nothing is evicted",
    ),
    Case(
        "ImdsproxyCacheFull",
        fires=False,
        series={
            "imdsproxy_cache_evictions_total": "0+5x70",
            "imdsproxy_cache_bytes": "50x70",
            "imdsproxy_cache_max_bytes": "100x70",
        },
        why="one large entry",
    ),
)


def at_target(series: str) -> str:
    """Return a series with the labels of its target."""
    name, _, labels = series.rstrip("}").partition("{")
    own = [label for label in labels.split(",") if label]
    more = [f'{label}="{value}"' for label, value in WHERE.items() if not any(each.startswith(label) for each in own)]
    return f"{name}{{{','.join((*own, *more))}}}"


def expected(case: Case) -> list[dict[str, Any]]:
    """Return the alerts as promtool expects them, with their annotations rendered."""
    if not case.fires:
        return []
    rule = RULES[NAMES.index(case.alert)]
    labels = {**WHERE, **case.labels}
    annotations = {
        key: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for key, text in rule["annotations"].items()
    }
    return [{"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": annotations}]


@with_promtool
def test_alerts_fire_when_they_should_and_not_otherwise(tmp_path: Path) -> None:
    tests = [
        {
            "name": f"{case.alert} {'fires' if case.fires else 'is silent'} {case.why}",
            "interval": "1m",
            "input_series": [{"series": at_target(name), "values": values} for name, values in case.series.items()],
            "alert_rule_test": [{"eval_time": "1h", "alertname": case.alert, "exp_alerts": expected(case)}],
        }
        for case in CASES
    ]
    written = tmp_path / "tests.yaml"
    written.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    status, said = promtool("test", "rules", str(written))
    assert status == 0, said


@pytest.mark.parametrize("alert", NAMES)
def test_every_alert_is_tested_both_ways(alert: str) -> None:
    assert {case.fires for case in CASES if case.alert == alert} == {True, False}


@with_promtool
def test_rules_and_scrape_configuration_are_valid(tmp_path: Path) -> None:
    assert promtool("check", "rules", str(ALERTS))[0] == 0
    # Debian builds Prometheus without the discovery of Kubernetes, so that part is not read here.
    text = SCRAPE.read_text().replace(
        "kubernetes_sd_configs:\n      - role: pod", "static_configs:\n      - targets: ['pod.example:8256']"
    )
    assert "kubernetes_sd_configs" not in text
    (tmp_path / "scrape.yaml").write_text(text)
    (tmp_path / "alerts.yaml").write_text(ALERTS.read_text())
    status, said = promtool("check", "config", str(tmp_path / "scrape.yaml"))
    assert status == 0, said
