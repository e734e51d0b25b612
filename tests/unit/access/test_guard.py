"""The rules in force: what is refused and told, and what the fast path may answer."""

from __future__ import annotations

import json

import pytest

from imdsproxy.access.guard import Guard, RefusedAccess
from imdsproxy.access.rules import Grant, Mode, Rule, Rules
from imdsproxy.access.subject import UNKNOWN_SUBJECT, Subject, Who, subject_of
from imdsproxy.protocol.messages import Key, Request, Target
from imdsproxy.protocol.peer import Peer, PeerKind, Pod
from imdsproxy.protocol.target import read_target

WEB, OTHER = Subject(user=33), Subject(user=34)
GRANT = Grant(("metadata", "instance"))
RULES = Rules((Rule("web", (Who(users=frozenset({33})),), (GRANT,), (("metadata", "attested"),)),))


def request(text: str = "/metadata/instance/compute", method: str = "GET") -> Request:
    target = read_target(text.encode("ascii"))
    assert isinstance(target, Target)
    return Request(method, target)


def guard(rules: Rules = RULES, *, audit: bool = False) -> tuple[Guard, list[RefusedAccess]]:
    told: list[RefusedAccess] = []
    return Guard(rules, audit=audit, observe=told.append), told


def test_guard_serves_what_is_allowed_and_tells_nothing() -> None:
    one, told = guard()
    assert one.refusal(WEB, request()) is None
    assert told == []


@pytest.mark.parametrize(
    ("rules", "subject", "path", "rule", "words"),
    [
        (RULES, OTHER, "/metadata/instance", "default", "no access rule allows it"),
        (RULES, WEB, "/metadata/attested", "web", 'the access rule "web" refuses it'),
        (
            Rules(default_allows=True, reserved=(GRANT,)),
            WEB,
            "/metadata/instance",
            "reserved",
            "the access rules reserve it for others",
        ),
    ],
)
def test_guard_refuses_with_the_name_of_the_rule(
    rules: Rules, subject: Subject, path: str, rule: str, words: str
) -> None:
    one, told = guard(rules)
    refusal = one.refusal(subject, request(path))
    assert refusal is not None
    assert (refusal.status, refusal.reason, refusal.error) == (403, f"access-{rule}", "forbidden")
    assert json.loads(refusal.response().body)["error_description"].startswith(
        f"This client may not ask for {path}: {words}."
    )
    assert [(each.verdict.rule, each.subject, each.method, each.path, each.enforced) for each in told] == [
        (rule, subject, "GET", path, True)
    ]


@pytest.mark.parametrize(
    ("mode", "audit", "told", "allowed"),
    [(Mode.AUDIT, False, 1, False), (Mode.ENFORCE, True, 1, False), (Mode.DISABLED, False, 0, True)],
)
def test_guard_that_does_not_enforce_serves(mode: Mode, audit: bool, told: int, allowed: bool) -> None:
    one, refusals = guard(Rules(RULES.rules, mode=mode), audit=audit)
    assert one.refusal(OTHER, request()) is None
    assert [each.enforced for each in refusals] == [False] * told
    assert one.allows(OTHER, request()) is allowed, "the full path has to tell of a refusal"


def test_guard_remembers_what_it_has_allowed_by_client_and_key() -> None:
    one, told = guard()
    key = request().target.key
    assert not one.remembers(WEB, key)
    assert one.allows(WEB, request())
    assert not one.allows(OTHER, request())
    assert not one.allows(UNKNOWN_SUBJECT, request())
    assert one.remembers(WEB, key)
    assert not one.remembers(OTHER, key)
    assert not one.remembers(WEB, request("/metadata/instance").target.key)
    assert told == [], "the full path tells"


def test_guard_in_audit_mode_leaves_refusals_to_the_full_path_and_its_end_is_at_once() -> None:
    one, told = guard(Rules(RULES.rules, mode=Mode.AUDIT))
    key = request().target.key
    assert not one.allows(OTHER, request())
    assert not one.remembers(OTHER, key)
    assert one.refusal(OTHER, request()) is None
    one.replace(RULES)
    assert not one.remembers(OTHER, key)
    assert one.refusal(OTHER, request()) is not None
    assert [refused.enforced for refused in told] == [False, True]


def test_user_who_leaves_a_group_keeps_nothing_that_was_remembered() -> None:
    members: dict[int | str, frozenset[int]] = {33: frozenset({7})}
    rules = Rules((Rule("ops", (Who(groups=frozenset({7})),), (GRANT,)),))
    one = Guard(rules, groups_of=members.get)
    key = request().target.key
    assert one.allows(WEB, request())
    assert one.remembers(WEB, key)
    members[33] = frozenset({8})
    assert not one.remembers(WEB, key)
    assert one.refusal(WEB, request()) is not None
    del members[33]
    assert one.refusal(WEB, request()) is not None, "what is unknown grants nothing"
    denying = Rules((Rule("ops", (Who(groups=frozenset({7})),), (), (("metadata",),)),), default_allows=True)
    one.replace(denying)
    assert one.refusal(WEB, request()) is not None, "and always refuses"
    members[33] = frozenset({8})
    assert one.refusal(WEB, request()) is None


def test_guard_forgets_when_the_rules_are_replaced() -> None:
    one, _ = guard()
    assert one.allows(WEB, request())
    one.replace(Rules())
    assert not one.remembers(WEB, request().target.key)
    assert not one.allows(WEB, request())


def test_guard_remembers_a_bounded_number_of_bounded_keys() -> None:
    one, _ = guard()
    long = request("/metadata/instance?a=" + "a" * 2000)
    assert one.allows(WEB, long)
    assert not one.remembers(WEB, long.target.key)
    for number in range(5000):
        one.allows(WEB, request(f"/metadata/instance?a={number}"))
    assert len(one._remembered) <= 4096
    assert one.remembers(WEB, Key("/metadata/instance?a=4999"))


def test_subject_has_nothing_that_the_client_wrote_itself() -> None:
    peer = Peer("10.0.0.1", 33, 7, proxy="forged", executable="/bin/a", kind=PeerKind.UNIX)
    assert subject_of(peer) == Subject(user=33, executable="/bin/a", address="10.0.0.1", unix=True)
    assert subject_of(Peer()) == UNKNOWN_SUBJECT


POD_RULES = Rules(
    (
        Rule("shop", (Who(namespaces=frozenset({"shop"})),), (GRANT,)),
        Rule("web", (Who(service_accounts=frozenset({("shop", "web")})),), (Grant(("metadata", "attested")),)),
    )
)
AT_5, AT_6 = Subject(address="10.244.0.5"), Subject(address="10.244.0.6")


def test_pod_of_an_address_is_looked_up_for_each_decision() -> None:
    pods = {"10.244.0.5": Pod("shop", "web-1", "web")}
    told: list[RefusedAccess] = []
    one = Guard(POD_RULES, observe=told.append, pod_at=pods.get)
    assert one.refusal(AT_5, request()) is None
    assert one.refusal(AT_5, request("/metadata/attested")) is None
    assert one.allows(AT_5, request())
    assert one.remembers(AT_5, key_of(request()))
    assert one.refusal(AT_6, request()) is not None
    assert not one.allows(AT_6, request())
    assert not one.remembers(AT_6, key_of(request()))
    pods["10.244.0.6"] = pods.pop("10.244.0.5")
    assert one.refusal(AT_6, request()) is None
    assert one.refusal(AT_5, request()) is not None
    assert not one.allows(AT_5, request())
    assert not one.remembers(AT_5, key_of(request()))
    pods["10.244.0.6"] = Pod("shop", "static", None)
    assert one.refusal(AT_6, request()) is None
    assert one.refusal(AT_6, request("/metadata/attested")) is not None
    assert [refused.subject.namespace for refused in told] == [None, None, "shop"]


def test_client_without_an_address_is_no_pod() -> None:
    one = Guard(POD_RULES, pod_at=lambda _address: Pod("shop", "web-1", "web"))
    assert one.refusal(Subject(unix=True), request()) is not None
    assert one.knows_pods
    assert not Guard(POD_RULES).knows_pods
    assert Guard(POD_RULES).refusal(AT_5, request()) is not None


def key_of(one: Request) -> Key:
    return one.target.key
