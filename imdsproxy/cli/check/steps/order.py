"""All steps, in the order in which they are reported: what an earlier one finds may explain a later one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import NOT_CHECKED, Finding, failure, skipped
from imdsproxy.cli.check.steps.access import judge_access, judge_pods
from imdsproxy.cli.check.steps.budget_file import judge_budget_file
from imdsproxy.cli.check.steps.handover_file import judge_handover_file
from imdsproxy.cli.check.steps.health import judge_clock, judge_latency, judge_throttling
from imdsproxy.cli.check.steps.identity import judge_identity
from imdsproxy.cli.check.steps.imds import judge_answer, judge_guard
from imdsproxy.cli.check.steps.machine import judge_agent, judge_node, judge_web_proxy
from imdsproxy.cli.check.steps.places import judge_admin_port, judge_port, judge_settings, judge_socket
from imdsproxy.cli.check.steps.redirect import judge_bypass, judge_redirect, judge_route_localnet
from imdsproxy.cli.check.steps.route import judge_route
from imdsproxy.cli.check.steps.rules import judge_other_rules, judge_pod_restriction

STEPS: Mapping[str, Callable[[Facts], Finding]] = MappingProxyType(
    {
        "settings": judge_settings,
        "port": judge_port,
        "admin-port": judge_admin_port,
        "socket": judge_socket,
        "route": judge_route,
        "answer": judge_answer,
        "guard": judge_guard,
        "latency": judge_latency,
        "clock": judge_clock,
        "throttling": judge_throttling,
        "identity": judge_identity,
        "web-proxy": judge_web_proxy,
        "redirect": judge_redirect,
        "bypass": judge_bypass,
        "route-localnet": judge_route_localnet,
        "other-rules": judge_other_rules,
        "pod-restriction": judge_pod_restriction,
        "node": judge_node,
        "agent": judge_agent,
        "budget-file": judge_budget_file,
        "handover-file": judge_handover_file,
        "access": judge_access,
        "pods": judge_pods,
    }
)


def judge(facts: Facts) -> dict[str, Finding]:
    """Return the finding of each step."""
    return {name: step(facts) for name, step in STEPS.items()}


def judge_without_settings(mistakes: str) -> dict[str, Finding]:
    """Return the findings if the settings cannot be read: every other step depends on them.

    Args:
        mistakes: A line for each mistake, with its remedy.
    """
    found = {name: skipped(NOT_CHECKED, "not checked, because the settings cannot be read") for name in STEPS}
    told = "; ".join(mistakes.splitlines())
    found["settings"] = failure("settings-invalid", told, 'correct them; "imdsproxy config" lists every setting')
    return found
