"""Rules of others about IMDS's address: redirects to another proxy, blocks, and AKS's restriction of pods."""

from __future__ import annotations

from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning
from imdsproxy.cli.check.ruleset import BLOCKS, Rule, keeps_pods_away
from imdsproxy.cli.check.steps.redirect import unreadable_rules

_ELSEWHERE = frozenset({"dnat", "redirect", "tproxy"})
_LEGACY = "iptables-legacy-save | grep 169.254.169.254"


def judge_other_rules(facts: Facts) -> Finding:
    """Check that nothing else redirects or blocks this machine's or its pods' calls of IMDS."""
    if facts.port_proxy:
        return failure(
            "other-portproxy",
            f"Windows' portproxy sends 169.254.169.254:80 to {facts.port_proxy}",
            "netsh interface portproxy delete v4tov4 listenaddress=169.254.169.254 listenport=80",
        )
    if facts.system != "linux":
        return ok("no portproxy of 169.254.169.254" if facts.system == "windows" else "none that this system knows")
    if facts.ruleset is None:
        return unreadable_rules(facts, "other-rules-unknown")
    blocks = [rule for rule in facts.other_rules if rule.action in BLOCKS and not keeps_pods_away(rule)]
    if blocks:
        return failure(
            "other-block",
            f"a rule blocks calls of IMDS: {_listed(blocks)}",
            "remove it, or exempt the proxy's user in it",
        )
    redirects = [rule for rule in facts.other_rules if rule.action in _ELSEWHERE]
    if redirects:
        return warning(
            "other-redirect",
            f"another program redirects calls of IMDS as well: {_listed(redirects)}",
            "keep one of the two: that of pod identity or another proxy, or imdsproxy's",
        )
    if facts.legacy_tables:
        tables = ", ".join(facts.legacy_tables)
        return skipped(
            "other-legacy", f"iptables-legacy has tables that nft does not show: {tables}", f"look with: {_LEGACY}"
        )
    return ok("no rule of another table is about IMDS")


def judge_pod_restriction(facts: Facts) -> Finding:
    """Check whether rules keep pods from IMDS, such as AKS's IMDS restriction, that a redirect would lead around."""
    if facts.system == "linux" and facts.ruleset is None:
        return unreadable_rules(facts, "pod-restriction-unknown")
    rules = list(filter(keeps_pods_away, facts.other_rules))
    if not rules:
        return ok("no rule is known that keeps pods from IMDS")
    found = f"pods are kept from IMDS: {_listed(rules)}"
    own = None if facts.ruleset is None else facts.ruleset.own
    if own is not None and own.node and "/metadata/identity" not in facts.config.deny:
        return warning(
            "pod-restriction-bypassed",
            f"{found}; the redirect for pods leads around that rule, and pods get this VM's tokens",
            "load the redirect with --respect-restriction or without --node, or set IMDSPROXY_DENY=/metadata/identity",
        )
    return ok(found)


def _listed(rules: list[Rule]) -> str:
    return "; ".join(map(str, rules))
