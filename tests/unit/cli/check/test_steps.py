"""Each finding of each step, from facts that bring it about."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from imdsproxy.cli.check.answers import RunningProxy, Token
from imdsproxy.cli.check.facts import (
    Access,
    BudgetFile,
    Facts,
    HandoverFile,
    Listener,
    Node,
    Place,
    Process,
    Reach,
    Route,
    Routes,
)
from imdsproxy.cli.check.finding import EXIT, Finding, Status, worst
from imdsproxy.cli.check.ruleset import Redirect, Ruleset
from imdsproxy.cli.check.steps.order import STEPS, judge, judge_without_settings
from imdsproxy.config import Config, SettingInForce
from imdsproxy.protocol.address import Address
from tests.unit.cli.check.kit import (
    BY_PROXY,
    DATED,
    IMDS_FIELDS,
    PROXY,
    TO_IMDS,
    WAY,
    direct,
    exchange,
    facts,
    own_error,
    rule,
    silence,
)

BY_ITSELF = ("cache-status", "imdsproxy; hit; ttl=9")
OTHER = Config(upstream=Address("10.1.2.3"))
NEVER = Config(require_metadata_header="never")
CLUSTER = Route(Reach.ROUTED, "number 9", "169.254.1.156", dhcp=False)
MUTE = Redirect("127.0.0.1", 8254, "990", exclusive=True)
NODE = Redirect("127.0.0.1", 8254, "990", node=True, guarded=True)


def routed(way: Route, other: Route = WAY) -> Routes:
    return Routes("169.254.169.254", way, other)


def loaded(redirect: Redirect) -> Ruleset:
    return Ruleset(redirect)


def port(place: Place, why: str = "", *processes: Process) -> tuple[Listener, ...]:
    return (Listener("PORT", "127.0.0.1:8254", place, why, processes),)


def identity(status: int | None, words: str = "", expires_in: int | None = None) -> Facts:
    got = silence() if status is None else exchange(status, json.dumps({"error_description": words}))
    return facts(token=Token(got, expires_in))


def ruled(**values: object) -> Facts:
    return facts(access=Access("/etc/imdsproxy/access.toml", **values))  # type: ignore[arg-type]


def handed(**values: object) -> Facts:
    return facts(handover_file=HandoverFile("/run/imdsproxy/handover", **values))  # type: ignore[arg-type]


def budget(**values: object) -> Facts:
    return facts(budget_file=BudgetFile("/run/imdsproxy/budget", **{"exists": True, **values}))  # type: ignore[arg-type]


# For each step: the finding's code (or the status where all is well), words that it has to contain, and the facts.
CASES: dict[str, list[tuple[str, str, Facts]]] = {
    "settings": [
        ("ok", "all at their defaults", facts()),
        (
            "ok",
            "IMDSPROXY_PORT (flag --port)",
            facts(differing=(SettingInForce("IMDSPROXY_PORT", "9", "flag --port"),)),
        ),
        ("ok", "all at their defaults", direct()),
        ("ok", "all at their defaults", facts(proxy=RunningProxy("url", settings=(("IMDSPROXY_UDS", "/s"),)))),
        (
            "settings-elsewhere",
            "IMDSPROXY_BUDGET_FILE=/b",
            facts(proxy=RunningProxy("url", settings=(("IMDSPROXY_BUDGET_FILE", "/b"),))),
        ),
        (
            "settings-elsewhere",
            "IMDSPROXY_DENY=at its default",
            facts(differing=(SettingInForce("IMDSPROXY_DENY", "/a", "default"),)),
        ),
        ("settings-doubtful", "first; second", facts(warnings=("first", "second"))),
        ("settings-start", "IMDSPROXY_WARMUP=x", facts(start_error="IMDSPROXY_WARMUP=x: no", warnings=("first",))),
    ],
    "port": [
        ("ok", "imdsproxy (process 42, user 990)", facts()),
        ("ok", "is free: no proxy runs there", direct()),
        ("ok", "at each start", facts(listeners=port(Place.FREE, "port 0 is a free one at each start"))),
        ("port-taken", "nginx (process 7)", facts(listeners=port(Place.TAKEN, "", Process(7, None, "nginx")))),
        ("port-taken", "(a reason)", facts(listeners=port(Place.TAKEN, "a reason"))),
        ("port-absent", "no interface has the address of", facts(listeners=port(Place.ABSENT, ""))),
        ("port-unusable", "no such address", facts(listeners=port(Place.UNUSABLE, "no such address"))),
    ],
    "admin-port": [
        ("ok", "no admin port", facts()),
        ("admin-port-taken", "9:1", facts(listeners=(Listener("ADMIN_PORT", "9:1", Place.TAKEN),))),
        ("admin-port-absent", "9:1", facts(listeners=(Listener("ADMIN_PORT", "9:1", Place.ABSENT),))),
        ("admin-port-unusable", "why", facts(listeners=(Listener("ADMIN_PORT", "9:1", Place.UNUSABLE, "why"),))),
    ],
    "socket": [
        ("ok", "no Unix socket", facts()),
        ("ok", "answers at /run/s", facts(listeners=(Listener("UDS", "/run/s", Place.OURS),))),
        ("socket-taken", "/run/s", facts(listeners=(Listener("UDS", "/run/s", Place.TAKEN),))),
        ("socket-unusable", "no folder", facts(listeners=(Listener("UDS", "/run/s", Place.UNUSABLE, "no folder"),))),
    ],
    "route": [
        ("ok", "interface eth0 (gateway 10.0.0.1, source 10.0.0.4)", facts()),
        ("ok", "needs no route", facts(config=OTHER, routes=Routes("", WAY, WAY))),
        ("ok", "by DHCP", facts(routes=routed(replace(WAY, dhcp=True)))),
        ("ok", "on the link)", facts(routes=routed(Route(Reach.ROUTED, "eth0"), Route(Reach.NO_ROUTE)))),
        ("route-unknown", "not permitted", facts(routes=routed(Route(Reach.UNKNOWN, why="not permitted")))),
        ("route-missing", "no route leads", facts(routes=routed(Route(Reach.NO_ROUTE)))),
        ("route-blocked", "blackhole", facts(routes=routed(Route(Reach.BLOCKED)))),
        ("route-local", "address of this machine", facts(routes=routed(Route(Reach.LOCAL)))),
        ("route-link-local", "169.254.1.156", facts(system="windows", routes=routed(CLUSTER))),
        ("route-interface", "by interface tun0", facts(routes=routed(Route(Reach.ROUTED, "tun0", "10.8.0.2")))),
        ("route-static-address", "set by hand", facts(routes=routed(replace(WAY, dhcp=False)))),
    ],
    "answer": [
        ("ok", "IMDS/150.870.65.1854 answers, newest api-version 2025-04-07", facts()),
        ("ok", "newest api-version", direct()),
        ("ok", "refuses this check /metadata/versions: denied", facts(versions=own_error(403, "denied"))),
        ("proxy-failing", "403: denied", facts(versions=own_error(403, "denied"), proxy=None)),
        ("proxy-failing", "502: unreachable", facts(versions=own_error(502, "unreachable"))),
        ("proxy-failing", "without a reason", facts(versions=exchange(502, "<html>", fields=(BY_ITSELF,)))),
        ("imds-failing", "500", facts(versions=exchange(500, proxied=True, fields=(*IMDS_FIELDS, BY_PROXY)))),
        ("answer-cached", "11 s old", facts(versions=exchange(fields=(*IMDS_FIELDS, BY_ITSELF, ("age", "11"))))),
        ("proxy-loop", "lacks the user", facts(versions=own_error(508, "lacks the user"))),
        ("proxy-silent", "its words", facts(versions=silence(proxied=True), proxy=None)),
        (
            "proxy-silent",
            "it says: IMDS has not answered yet",
            facts(versions=silence(proxied=True), proxy=RunningProxy("url", "IMDS has not answered yet")),
        ),
        (
            "proxy-silent",
            "it says: 500: an error",
            facts(versions=silence(proxied=True), proxy=RunningProxy("url", "not ready", "500: an error")),
        ),
        ("imds-refused", "refuses connections", direct(versions=silence("refused"))),
        ("imds-refused", "refuses connections", direct(versions=silence("refused"), ruleset=None)),
        ("imds-timeout", "in time", direct(versions=silence("timeout"))),
        ("imds-unreachable", "cannot be reached", direct(versions=silence("unreachable"), config=OTHER)),
        ("imds-denied", "may not be reached", direct(versions=silence("denied"))),
        ("imds-broken", "no HTTP answer", direct(versions=silence("broken"))),
        ("imds-redirected", "no proxy runs", direct(versions=silence("refused"), ruleset=loaded(NODE))),
        ("imds-updating", "410", direct(versions=exchange(410))),
        ("imds-throttled", "429", direct(versions=exchange(429))),
        ("imds-failing", "500", direct(versions=exchange(500))),
        ("imds-forbidden", "403", direct(versions=exchange(403))),
        ("imds-other", "404 as EC2ws", direct(versions=exchange(404, fields=(("server", "EC2ws"),)))),
        ("imds-other", "200 as an unnamed server", direct(versions=exchange(fields=()))),
        ("imds-other", "200 as IMDS/", direct(versions=exchange(body="<html>"))),
        ("imds-other", "200 as IMDS/", direct(versions=exchange(body="[" * 4096))),
        ("imds-other", "200 as IMDS/", direct(versions=exchange(body="[7]"))),
        ("ok", "answers", direct(versions=exchange(fields=(*IMDS_FIELDS, ("age", "soon"))))),
        ("imds-other", "200 as IMDS/", direct(versions=exchange(body='{"apiVersions":[]}'))),
        (
            "imds-stale",
            "7 s old",
            facts(
                versions=exchange(
                    proxied=True,
                    fields=(
                        *IMDS_FIELDS,
                        ("age", "7"),
                        ("cache-status", "imdsproxy; hit; ttl=-3; detail=stale-if-error"),
                    ),
                )
            ),
        ),
        ("ok", "1 s ago", facts(versions=exchange(proxied=True, fields=(*IMDS_FIELDS, BY_PROXY, ("age", "1"))))),
    ],
    "guard": [
        ("ok", "400 without Metadata, 400 with X-Forwarded-For", facts()),
        ("guard-off", "is never", facts(without_metadata=None, config=NEVER)),
        ("guard-unknown", "nothing answers", direct(without_metadata=None, config=NEVER)),
        ("guard-unknown", "nothing answers", facts(without_metadata=None)),
        ("guard-unknown", "nothing answers", facts(forwarded=None)),
        ("guard-unknown", "nothing answers", facts(without_metadata=silence())),
        ("guard-unknown", "nothing answers", facts(forwarded=silence())),
        ("guard-metadata", "200 to a request without Metadata", facts(without_metadata=exchange(200))),
        ("guard-forwarded", "200 to a request with X-Forwarded-For", facts(forwarded=exchange(200))),
        ("guard-throttled", "429", facts(forwarded=exchange(429))),
    ],
    "latency": [
        ("ok", "5 ms on average of the proxy's 10 requests", facts()),
        ("ok", "2 ms for one request", direct()),
        ("latency-high", "1500 ms", direct(versions=exchange(seconds=1.5))),
        ("latency-unknown", "has answered nothing", direct(versions=silence())),
        ("latency-unknown", "has answered nothing", facts(proxy=RunningProxy("url"))),
    ],
    "clock": [
        ("ok", "within 30 s", facts()),
        ("clock-skewed", "31 s ahead of", facts(versions=exchange(wall=DATED + 31))),
        ("clock-wrong", "301 s behind", facts(versions=exchange(wall=DATED - 301))),
        ("clock-unknown", "no new answer", facts(versions=exchange(fields=(*IMDS_FIELDS, ("age", "9"))))),
        ("clock-unknown", "no new answer", facts(versions=silence())),
    ],
    "throttling": [
        ("ok", "no 429 of IMDS", facts()),
        ("ok", "open connection to IMDS now: 0, 33", direct(direct_callers=(0, 33))),
        ("throttled-by-others", "3 times with 429", facts(proxy=RunningProxy("url", throttled=3))),
        ("throttled-by-others", "now: 33", direct(forwarded=exchange(429), direct_callers=(33,))),
        ("ok", "no 429", facts(versions=own_error(429, "spent"), without_metadata=None)),
    ],
    "identity": [
        ("identity-not-asked", "not asked", facts()),
        ("ok", "86399 s to live", identity(200, expires_in=86399)),
        ("identity-unknown", "nothing answers", identity(None)),
        ("identity-none", "Identity not found", identity(400, "Identity not found")),
        ("identity-ambiguous", "Multiple", identity(400, "Multiple user assigned identities exist")),
        ("identity-later", "429", identity(429, "Temporarily throttled")),
        ("identity-later", "503", identity(503)),
        ("identity-refused", "403", identity(403, "denied")),
        ("identity-refused", "200", identity(200)),
        ("identity-refused", "400", facts(token=Token(exchange(400, "<html>")))),
        ("identity-refused", "400", facts(token=Token(exchange(400, '{"error_description": 7}')))),
    ],
    "web-proxy": [
        ("ok", "none", facts(web_proxies=(("https", "http://10.0.0.9:3128"), ("no", "localhost")))),
        ("ok", "is this proxy", facts(web_proxies=(("http", "http://127.0.0.1:8254"),))),
        ("ok", "is this proxy", facts(web_proxies=(("http", "127.0.0.1:8254"),))),
        ("ok", "include 169.254.169.254", facts(web_proxies=(("all", "http://w:1"),), web_proxy_bypassed=True)),
        ("web-proxy-catches", "http_proxy is w:3128,", facts(web_proxies=(("http", "http://u:secret@w:3128"),))),
        ("web-proxy-catches", "http://w:port", facts(web_proxies=(("http", "http://w:port"),))),
    ],
    "redirect": [
        ("ok", "calls go to 127.0.0.1:8254, except those of user 990", facts()),
        ("ok", "not loaded", direct()),
        ("ok", "on this system", facts(system="windows")),
        ("ok", "calls, those of pods too, go to", facts(ruleset=loaded(NODE))),
        ("ok", "127.0.0.1:8254", facts(config=Config(host="0.0.0.0"))),
        ("ok", "127.0.0.1:8254", facts(listeners=())),
        ("redirect-unknown", "no nft", facts(ruleset=None, ruleset_words="no nft")),
        ("redirect-empty", "redirects no call", facts(ruleset=loaded(Redirect()))),
        ("redirect-unexempt", "no user is exempt", facts(ruleset=loaded(Redirect("127.0.0.1", 8254)))),
        ("redirect-elsewhere", "listen at 127.0.0.1:8254", facts(ruleset=loaded(Redirect("127.0.0.1", 9254, "990")))),
        ("redirect-elsewhere", "listen at 127.0.0.1:8254", facts(ruleset=loaded(Redirect("10.0.0.4", 8254, "990")))),
        ("redirect-unanswered", "every client is refused", facts(listeners=port(Place.FREE))),
        ("redirect-user", "runs as user 990", facts(ruleset=loaded(Redirect("127.0.0.1", 8254, "991")))),
        (
            "redirect-mute",
            "user 990's program",
            facts(ruleset=loaded(replace(MUTE, exempt="991")), listeners=port(Place.TAKEN, "", PROXY)),
        ),
        (
            "redirect-unanswered",
            "no imdsproxy answers",
            facts(ruleset=loaded(MUTE), listeners=port(Place.TAKEN, "", PROXY)),
        ),
        (
            "redirect-unanswered",
            "no imdsproxy answers",
            facts(
                ruleset=loaded(replace(MUTE, exempt="991")), listeners=port(Place.TAKEN, "", Process(1, 0, "systemd"))
            ),
        ),
        (
            "redirect-root",
            "every process of root",
            facts(
                ruleset=loaded(Redirect("127.0.0.1", 8254, "0")),
                listeners=port(Place.OURS, "", Process(1, 0, "systemd")),
            ),
        ),
    ],
    "bypass": [
        ("ok", "answered by the proxy", facts()),
        ("ok", "no redirect to bypass", direct()),
        ("ok", "no redirect to bypass", facts(system="windows", ruleset=None)),
        ("bypass-unknown", "no nft", facts(ruleset=None, ruleset_words="no nft")),
        (
            "bypass-earlier-rule",
            "dnat to 10.0.0.9:80",
            facts(ruleset=Ruleset(NODE, (rule("dnat", priority=-200, goal="10.0.0.9:80"),))),
        ),
        (
            "ok",
            "answered by the proxy",
            facts(ruleset=Ruleset(NODE, (rule("drop", "forward", priority=-200),))),
        ),
        ("ok", "answered by the proxy", facts(ruleset=Ruleset(NODE, (rule(priority=0),)))),
        ("bypass-exempt-user", "exempt", facts(redirected=None)),
        ("ok", "the kubelet", facts(redirected=None, user=0, ruleset=loaded(replace(NODE, root_exempt=True)))),
        (
            "bypass-exempt-user",
            "exempt",
            facts(redirected=None, user=1, ruleset=loaded(replace(NODE, root_exempt=True))),
        ),
        ("bypass-unanswered", "its words", facts(redirected=silence())),
        ("bypass-direct", "by IMDS itself", facts(redirected=exchange())),
    ],
    "route-localnet": [
        ("ok", "is 0, and nothing here needs it", facts()),
        ("ok", "kube-proxy needs it", facts(route_localnet=True, node=Node(kube_proxy=True))),
        ("ok", "loopback is guarded", facts(ruleset=loaded(NODE), route_localnet=True)),
        ("ok", "is 0", facts(ruleset=loaded(replace(NODE, host="10.0.0.4")))),
        ("ok", "is 0", facts(ruleset=loaded(replace(NODE, host="")))),
        ("ok", "is 0", direct(route_localnet=None)),
        ("route-localnet-unknown", "no nft", facts(ruleset=None, ruleset_words="no nft")),
        ("ok", "Linux alone", facts(system="windows", ruleset=None)),
        ("route-localnet-off", "no kube-proxy runs", facts(ruleset=loaded(NODE))),
        ("route-localnet-off", "but has not set it", facts(ruleset=loaded(NODE), node=Node(kube_proxy=True))),
        (
            "route-localnet-unguarded",
            "guard of loopback is gone",
            facts(ruleset=loaded(replace(NODE, guarded=False)), route_localnet=True),
        ),
        ("route-localnet-open", "nothing guards", facts(route_localnet=True)),
    ],
    "other-rules": [
        ("ok", "no rule of another table", facts()),
        ("ok", "no portproxy", facts(system="windows", ruleset=None)),
        ("ok", "none that this system knows", facts(system="other", ruleset=None)),
        ("other-portproxy", "10.0.0.9:80", facts(system="windows", ruleset=None, port_proxy="10.0.0.9:80")),
        ("other-rules-unknown", "no nft", facts(ruleset=None, ruleset_words="no nft")),
        ("other-block", "drop in table ip filter, chain theirs", facts(ruleset=Ruleset(NODE, (rule(),)))),
        ("other-redirect", "dnat to :2579", facts(ruleset=Ruleset(None, (rule("dnat", "prerouting", goal=":2579"),)))),
        ("other-legacy", "filter, nat", facts(legacy_tables=("filter", "nat"))),
        ("ok", "no rule of another table", facts(ruleset=Ruleset(None, (rule("drop", "forward"),)))),
    ],
    "pod-restriction": [
        ("ok", "no rule is known", facts()),
        ("ok", "no rule is known", facts(system="windows", ruleset=None)),
        ("pod-restriction-unknown", "no nft", facts(ruleset=None, ruleset_words="no nft")),
        ("ok", "pods are kept from IMDS", facts(ruleset=Ruleset(None, (rule("drop", "forward"),)))),
        ("pod-restriction-bypassed", "leads around", facts(ruleset=Ruleset(NODE, (rule("reject", "forward"),)))),
        (
            "ok",
            "pods are kept from IMDS",
            facts(ruleset=Ruleset(NODE, (rule("drop", "forward"),)), config=Config(deny=("/metadata/identity",))),
        ),
    ],
    "node": [
        ("ok", "no kubelet", facts()),
        ("ok", "with kube-proxy", facts(node=Node(kubelet=True, kube_proxy=True))),
        ("ok", "without kube-proxy and with Cilium", facts(node=Node(kubelet=True, cilium=True))),
        ("ok", "eBPF host routing", facts(node=Node(kubelet=True, ebpf_label=True))),
        (
            "node-ebpf-routing",
            "bypass all rules",
            facts(node=Node(kubelet=True, ebpf_label=True), ruleset=loaded(NODE)),
        ),
        ("node-cilium", "with Cilium", facts(node=Node(kubelet=True, cilium=True), ruleset=loaded(NODE))),
    ],
    "agent": [
        ("ok", "is not found", facts()),
        ("ok", "does not run", facts(agent_installed=True)),
        ("agent-runs", "azure-proxy-age (process 9, user 0)", facts(agent=Process(9, 0, "azure-proxy-age"))),
    ],
    "budget-file": [
        ("ok", "none is configured", facts()),
        ("ok", "is not there yet", budget(exists=False)),
        ("ok", "shared by imdsproxy (process 42, user 990)", budget(processes=(PROXY,), settings=((5, 1.0),))),
        ("ok", "a proxy that this user cannot see", budget(settings=((5, 1.0),))),
        ("ok", "no process that can be seen", budget()),
        ("budget-file-unknown", "Permission denied", budget(problem="denied", words="Permission denied")),
        ("budget-file-folder", "no folder", budget(exists=False, problem="folder", words="no folder")),
        (
            "budget-file-distrusted",
            "every user may write it",
            budget(problem="distrusted", words="every user may write it"),
        ),
        ("budget-file-foreign", "not a budget", budget(problem="foreign", words="it is not a budget")),
        ("budget-file-version", "version 1", budget(problem="version", words="it is of version 1")),
        ("budget-file-clock", "a time of its own", budget(problem="clock", words="a time of its own")),
        ("budget-file-damaged", "is damaged", budget(damaged=True)),
        ("budget-file-exposed", "every user can write to", budget(exposed=True)),
        ("budget-file-settings", "5 in 1 s, 4 in 2.5 s", budget(settings=((5, 1.0), (4, 2.5)))),
    ],
    "handover-file": [
        ("ok", "none is configured", facts()),
        ("ok", "is not there", handed()),
        ("ok", "has 3 entries", handed(entries=3)),
        ("handover-file-unknown", "Permission denied", handed(problem="denied", words="Permission denied")),
        ("handover-file-folder", "no folder", handed(problem="folder", words="no folder")),
        ("handover-file-unused", "it is damaged", handed(problem="unused", words="it is damaged")),
    ],
    "access": [
        ("ok", "every client gets everything", facts()),
        ("ok", "2 rules, default deny", ruled(rules=2)),
        ("access-file-unknown", "may not read it", ruled(problem="denied", words="this user may not read it")),
        ("access-file-unusable", "line 3", ruled(problem="unusable", words="line 3: no")),
        ("access-not-enforced", "nothing is refused", ruled(mode="audit")),
        ("access-not-enforced", "the mode is disabled", ruled(mode="disabled")),
        ("access-names-unknown", "no user x", ruled(warnings=("this machine has no user x",))),
    ],
    "pods": [
        ("ok", "no pods are watched", facts()),
        ("ok", "the pods of node-1", facts(config=Config(pods_of_node="node-1"))),
        ("pods-unusable", "not installed", facts(config=Config(pods_of_node="n"), pods_problem="not installed")),
    ],
}
FLAT = [(step, *case) for step, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("step", "code", "words", "given"), FLAT)
def test_step_finds_what_the_facts_say(step: str, code: str, words: str, given: Facts) -> None:
    finding = STEPS[step](given)
    assert (finding.code or finding.status) == code
    assert words in finding.found
    assert "\n" not in finding.found + finding.advice
    # Each warning and failure says what to do; a skipped step need not.
    assert finding.advice or finding.status in {Status.OK, Status.SKIPPED}
    assert (finding.code == "") == (finding.status is Status.OK)


def test_every_step_has_cases() -> None:
    assert list(CASES) == list(STEPS)


@pytest.mark.parametrize(
    ("routes", "system", "advice"),
    [
        (routed(Route(Reach.NO_ROUTE)), "linux", "ip route add 169.254.169.254/32 via 10.0.0.1 dev eth0"),
        (routed(Route(Reach.NO_ROUTE), Route(Reach.NO_ROUTE)), "linux", "dev INTERFACE-OF-THE-PRIMARY-NIC"),
        (routed(Route(Reach.LOCAL)), "linux", "ip addr show to 169.254.169.254"),
        (routed(Route(Reach.BLOCKED)), "linux", "ip route show table all"),
        (routed(Route(Reach.UNKNOWN)), "linux", "ip route get 169.254.169.254"),
        (routed(CLUSTER), "windows", "route add 169.254.169.254/32 10.0.0.4 metric 1 -p"),
        (routed(Route(Reach.NO_ROUTE), Route(Reach.NO_ROUTE)), "windows", "/32 ADDRESS-OF-THE-PRIMARY-NIC metric"),
        (routed(Route(Reach.UNKNOWN)), "windows", "route print 169.254.169.254"),
    ],
)
def test_route_advice_names_the_command_of_the_system(routes: Routes, system: str, advice: str) -> None:
    assert advice in STEPS["route"](facts(routes=routes, system=system)).advice


@pytest.mark.parametrize(
    ("redirect", "flags"),
    [
        (Redirect("127.0.0.1", 8254, "991"), ""),
        (replace(NODE, exempt="991"), " --node --root"),
        (replace(NODE, exempt="991", root_exempt=True), " --node"),
        (replace(NODE, exempt="991", root_exempt=True, node=False), " --node --respect-restriction"),
        (replace(NODE, exempt="991", root_exempt=True, exclusive=True), " --node --exclusive"),
    ],
)
def test_advice_loads_the_same_kind_of_redirect(redirect: Redirect, flags: str) -> None:
    advice = STEPS["redirect"](facts(ruleset=loaded(redirect))).advice
    assert advice == f"imdsproxy redirect --load --uid 990{flags}"


@pytest.mark.parametrize(("words", "advice"), [("Operation not permitted", "run this check as root"), ("no nft", "")])
def test_root_is_asked_for_where_it_would_help(words: str, advice: str) -> None:
    for step in ("redirect", "bypass", "route-localnet", "other-rules", "pod-restriction"):
        assert STEPS[step](facts(ruleset=None, ruleset_words=words)).advice == advice


def test_refused_upstream_that_is_not_imds_points_to_its_setting() -> None:
    assert "IMDSPROXY_UPSTREAM" in STEPS["answer"](direct(versions=silence("refused"), config=OTHER)).advice


def test_healthy_vm_has_no_warning() -> None:
    found = judge(facts())
    assert list(found) == list(STEPS)
    assert {finding.status for finding in found.values()} == {Status.OK, Status.SKIPPED}
    assert [step for step, finding in found.items() if finding.status is Status.SKIPPED] == ["identity"]


def test_unreadable_settings_fail_and_leave_the_rest_unchecked() -> None:
    found = judge_without_settings("first mistake\nsecond mistake")
    assert found["settings"].code == "settings-invalid"
    assert found["settings"].found == "first mistake; second mistake"
    assert {finding.code for step, finding in found.items() if step != "settings"} == {"not-checked"}


@pytest.mark.parametrize(
    ("statuses", "status", "exit_status"),
    [
        ([], Status.OK, 0),
        ([Status.OK, Status.SKIPPED], Status.OK, 0),
        ([Status.SKIPPED], Status.OK, 0),
        ([Status.WARNING, Status.OK], Status.WARNING, 1),
        ([Status.WARNING, Status.FAILURE, Status.SKIPPED], Status.FAILURE, 2),
    ],
)
def test_worst_finding_decides_the_exit_status(statuses: list[Status], status: Status, exit_status: int) -> None:
    assert worst(Finding(each, "") for each in statuses) is status
    assert EXIT[status] == exit_status


def test_secret_of_a_web_proxy_is_not_shown() -> None:
    finding = STEPS["web-proxy"](facts(web_proxies=(("http", "http://user:secret@w:3128"),)))
    assert "secret" not in finding.found + finding.advice
    assert TO_IMDS.target in finding.advice
