"""The log of refusals: one line a rule in five seconds."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from imdsproxy.access.decision import Verdict
from imdsproxy.access.file import read_rules
from imdsproxy.access.guard import Guard, RefusedAccess
from imdsproxy.access.rules import Mode
from imdsproxy.access.subject import Subject
from imdsproxy.ops.metrics import Metrics
from imdsproxy.ops.refusals import OutsiderLog, RefusalLog
from imdsproxy.testing.clock import FakeClock


def refused(rule: str = "web", *, enforced: bool = True, subject: Subject | None = None) -> RefusedAccess:
    who = Subject(user=33, executable="/bin/a", address="127.0.0.1") if subject is None else subject
    return RefusedAccess(Verdict(allowed=False, rule=rule), who, "GET", "/metadata/" + "a" * 300, enforced)


def test_refusal_log_is_limited_by_rule(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clock = FakeClock()
    log = RefusalLog(clock)
    for _ in range(3):
        log(refused())
    log(refused("other", enforced=False, subject=Subject()))
    clock.advance(5)
    log(refused())
    assert [(record.message, record.__dict__["fields"]["rule"]) for record in caplog.records] == [
        ("access refused", "web"),
        ("access would be refused", "other"),
        ("access refused", "web"),
    ]
    first, second, third = (record.__dict__["fields"] for record in caplog.records)
    assert first == {
        "rule": "web",
        "client": "user 33, /bin/a, 127.0.0.1",
        "method": "GET",
        "path": "/metadata/" + "a" * 189 + "a",
    }
    assert second["client"] == "unknown"
    assert third["omitted"] == 2


def test_metrics_count_refusals_by_rule_and_mode() -> None:
    metrics = Metrics()
    metrics.access.observe(refused())
    metrics.access.observe(refused(enforced=False))
    text = metrics.text().decode()
    assert 'imdsproxy_access_refused_total{mode="enforce",rule="web"} 1.0' in text
    assert 'imdsproxy_access_refused_total{mode="audit",rule="web"} 1.0' in text


def test_metrics_have_a_zero_for_each_refusal_that_the_rules_in_force_can_make() -> None:
    metrics = Metrics()
    text = 'default = "allow"\nreserved = "/metadata/identity"\n'
    text += '[[rule]]\nname = "web"\nuser = 1\ndeny = "/metadata/instance"\n'
    guard = metrics.access.guard = Guard(read_rules(text, "a.toml"))
    assert metrics.access.counts() == {("web", "enforce"): 0, ("reserved", "enforce"): 0}
    metrics.access.observe(refused())
    guard.replace(read_rules('default = "deny"\nmode = "audit"\n', "a.toml"))
    assert metrics.access.counts() == {("default", "audit"): 0, ("web", "enforce"): 1}
    assert 'imdsproxy_access_refused_total{mode="audit",rule="default"} 0.0' in metrics.text().decode()
    guard.replace(replace(guard.rules, mode=Mode.DISABLED))
    assert metrics.access.counts() == {("web", "enforce"): 1}


def test_outsider_log_is_limited_whatever_the_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clock = FakeClock()
    log = OutsiderLog(clock)
    for number in range(3):
        log(f"10.0.0.{number}")
    clock.advance(5)
    log("10.0.0.9")
    assert [(record.message, record.__dict__["fields"]) for record in caplog.records] == [
        ("client refused", {"client": "10.0.0.0"}),
        ("client refused", {"client": "10.0.0.9", "omitted": 2}),
    ]
