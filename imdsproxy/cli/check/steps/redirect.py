"""The redirect of 169.254.169.254 to the proxy: where it leads, whom it exempts, whether calls pass it by."""

from __future__ import annotations

from imdsproxy.cli.check.facts import Facts, Place
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning
from imdsproxy.cli.check.ruleset import Redirect, Rule
from imdsproxy.cli.nftables import ROUTE_LOCALNET

OWN_PRIORITY = -110
"""The priority of the redirect's chains (cli/nftables). Rules with a lower one see calls first."""
_REMOVE = "imdsproxy redirect --load --remove"


def unreadable_rules(facts: Facts, code: str) -> Finding:
    """Return the finding of a step that needs nftables' rules, which cannot be read."""
    advice = "run this check as root" if "permitted" in facts.ruleset_words else ""
    return skipped(code, f"nftables cannot be read: {facts.ruleset_words}", advice)


def judge_redirect(facts: Facts) -> Finding:
    """Check where the loaded redirect leads, and that the proxy's own user is exempt."""
    if facts.system != "linux":
        return ok("there is no redirect on this system; clients are configured (docs/clients.md)")
    if facts.ruleset is None:
        return unreadable_rules(facts, "redirect-unknown")
    own = facts.ruleset.own
    if own is None:
        return ok("not loaded: clients with 169.254.169.254 built in call IMDS directly")
    if not own.host:
        return failure(
            "redirect-empty",
            "the table ip imdsproxy is loaded, but redirects no call of this machine",
            f"load it again: imdsproxy redirect --load --uid USER; or remove it: {_REMOVE}",
        )
    if not own.exempt:
        return failure(
            "redirect-unexempt",
            f"calls go to {own.host}:{own.port}, and no user is exempt, so the proxy's requests come back to it",
            "imdsproxy redirect --load --uid USER, with the user that the proxy runs as",
        )
    calls = "calls, those of pods too," if own.node else "calls"
    goal = f"{calls} go to {own.host}:{own.port}, except those of user {own.exempt}"
    return _goal(facts, own, goal) or _exemption(facts, own, goal) or ok(goal)


def _goal(facts: Facts, own: Redirect, goal: str) -> Finding | None:
    port = facts.listener("PORT")
    host = facts.config.host
    others = set() if port is None or port.place is not Place.TAKEN else {each.user for each in port.processes}
    if own.exclusive and others and others.isdisjoint({0, None}) and own.exempt not in set(map(str, others)):
        number = min(map(str, others))
        return failure(
            "redirect-mute",
            f"{goal}; only that user and root may answer there, so the replies of user {number}'s program are dropped",
            f"if that is imdsproxy: {_load(own, number)}",
        )
    hosts = {host, "127.0.0.1"} if host in {"0.0.0.0", "localhost", "::"} else {host}  # noqa: S104  # compared, not bound
    if own.port != facts.config.port or own.host not in hosts:
        return warning(
            "redirect-elsewhere",
            f"{goal}, but these settings listen at {host}:{facts.config.port}",
            f"check the settings of the proxy that runs; load the redirect for this one, or remove it: {_REMOVE}",
        )
    if port is not None and port.place is not Place.OURS:
        return failure(
            "redirect-unanswered",
            f"{goal}, but no imdsproxy answers there, so every client is refused",
            f"start imdsproxy, or remove the redirect: {_REMOVE}",
        )
    return None


def _exemption(facts: Facts, own: Redirect, goal: str) -> Finding | None:
    users = {str(user) for user in facts.proxy_users}
    if users and own.exempt not in users:
        number = min(users)
        return failure(
            "redirect-user",
            f"{goal}, but the proxy runs as user {', '.join(sorted(users))}, so its own requests come back to it",
            _load(own, str(number)),
        )
    if own.exempt == "0":
        return warning(
            "redirect-root",
            f"{goal}: every process of root calls IMDS directly",
            "run the proxy as a user of its own, and load the redirect for that user",
        )
    return None


def _load(own: Redirect, user: str) -> str:
    """Return the command that loads the same redirect for another user."""
    node = "" if not own.node else " --node" if own.root_exempt or own.exempt == "0" else " --node --root"
    if own.root_exempt and not own.node:
        node = " --node --respect-restriction"
    flags = node + (" --exclusive" if own.exclusive else "")
    return f"imdsproxy redirect --load --uid {user}{flags}"


def judge_bypass(facts: Facts) -> Finding:
    """Check that a call of 169.254.169.254 ends at the proxy."""
    if facts.system == "linux" and facts.ruleset is None:
        return unreadable_rules(facts, "bypass-unknown")
    got = facts.redirected
    if facts.ruleset is None or facts.ruleset.own is None:
        return ok("there is no redirect to bypass")
    earlier = [rule for rule in facts.other_rules if _comes_first(rule)]
    if earlier:
        return failure(
            "bypass-earlier-rule",
            f"a rule sees calls before the redirect does: {earlier[0]}",
            "remove that rule, or let it leave calls of IMDS alone",
        )
    if got is None and facts.ruleset.own.root_exempt and facts.user == 0:
        return ok("not tried: on a node root is exempt, so that the kubelet reaches IMDS while the proxy is away")
    if got is None:
        return skipped(
            "bypass-exempt-user",
            "not tried: this process is exempt from the redirect, or the redirect is not for this upstream",
            "run this check as root while the proxy runs as a user of its own",
        )
    if got.from_proxy:
        return ok("a call of 169.254.169.254 is answered by the proxy", asked=got.asked)
    if got.status is None:
        return skipped(
            "bypass-unanswered", f"a call of 169.254.169.254 gets no answer ({got.words})", "see the step redirect"
        )
    return failure(
        "bypass-direct",
        "a call of 169.254.169.254 is answered by IMDS itself, although the redirect is loaded",
        "another network namespace, eBPF or an earlier rule bypasses it; see the steps other-rules, agent and node",
        asked=got.asked,
    )


def _comes_first(rule: Rule) -> bool:
    return rule.priority < OWN_PRIORITY and "output" in rule.hooks


def judge_route_localnet(facts: Facts) -> Finding:
    """Check the kernel setting without which pods' calls never reach a proxy on loopback."""
    if facts.system != "linux":
        return ok("a setting of Linux alone")
    if facts.ruleset is None:
        return unreadable_rules(facts, "route-localnet-unknown")
    own = facts.ruleset.own
    on = bool(facts.route_localnet)
    if own is not None and own.node and own.host and own.host.startswith("127."):
        if not on:
            by = "kube-proxy runs, but has not set it" if facts.node.kube_proxy else "no kube-proxy runs here to set it"
            return failure(
                "route-localnet-off",
                f"{ROUTE_LOCALNET} is 0, so pods' redirected calls are dropped; {by}",
                f"sysctl -w {ROUTE_LOCALNET}=1, and keep it with config/nftables/90-imdsproxy.conf in /etc/sysctl.d",
            )
        if not own.guarded:
            return failure(
                "route-localnet-unguarded",
                f"{ROUTE_LOCALNET} is 1, and the redirect's guard of loopback is gone",
                "load the redirect again: imdsproxy redirect --load --node --uid USER",
            )
        return ok(f"{ROUTE_LOCALNET} is 1, and loopback is guarded")
    if on and not facts.node.kube_proxy:
        return warning(
            "route-localnet-open",
            f"{ROUTE_LOCALNET} is 1, no redirect for pods and no kube-proxy needs it, and nothing guards loopback",
            f"sysctl -w {ROUTE_LOCALNET}=0, unless another program needs it",
        )
    return ok(f"{ROUTE_LOCALNET} is {int(on)}{'; kube-proxy needs it' if on else ', and nothing here needs it'}")
