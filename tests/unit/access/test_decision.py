"""The decision, step by step, and what is unknown: it never grants and always refuses."""

from __future__ import annotations

import pytest

from imdsproxy.access.decision import Verdict, decide, explain
from imdsproxy.access.query import comparable
from imdsproxy.access.rules import Grant, Mode, Rule, Rules, identity
from imdsproxy.access.subject import Names, Subject, Who
from imdsproxy.policy.endpoints import split
from tests.targets import target_of

TOKEN = "/metadata/identity/oauth2/token"  # a path
WEB, OTHER = Subject(user=33), Subject(user=34)
MEANS_WEB = (Who(users=frozenset({33})),)
VAULT = Grant(
    split(TOKEN),
    below=False,
    identities=frozenset({identity("client_id", "AB"), identity("system-assigned")}),
    audiences=frozenset({comparable("https://vault.azure.net/")}),
)


def verdict(rules: Rules, text: str, subject: Subject = WEB, method: str = "GET") -> Verdict:
    return decide(rules, subject, method, target_of(text))


def rules(
    *grants: Grant, denies: tuple[str, ...] = (), allows: bool = False, reserved: tuple[Grant, ...] = ()
) -> Rules:
    return Rules((Rule("web", MEANS_WEB, grants, tuple(map(split, denies))),), allows, reserved=reserved)


COMPUTE = rules(Grant(split("/metadata/instance/compute")))


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/metadata/instance/compute", True),
        ("/metadata/instance/compute/name?format=text", True),
        ("/METADATA/Instance/%63ompute/", True),
        ("//metadata/instance/compute", True),
        ("http://169.254.169.254/metadata/instance/compute", True),
        ("/metadata/instance/compute2", False),
        ("/metadata/instance/network", False),
        ("/metadata/instance", False),
        ("/metadata", False),
        ("/", False),
    ],
)
def test_decide_grants_a_path_and_everything_below_it_but_no_parent(path: str, allowed: bool) -> None:
    assert verdict(COMPUTE, path).allowed is allowed
    assert not verdict(COMPUTE, path, OTHER).allowed
    assert not verdict(COMPUTE, path, Subject()).allowed, "an unknown client gets nothing"


def test_decide_names_the_rule_the_client_and_the_grant() -> None:
    found = verdict(COMPUTE, "/metadata/instance/compute/name")
    assert found == Verdict(allowed=True, rule="web", who="user 33", what="/metadata/instance/compute")
    assert verdict(COMPUTE, "/metadata/versions") == Verdict(allowed=False, rule="default")


DENIED = rules(Grant(split("/metadata")), denies=("/metadata/instance/compute/userData",), allows=True)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/metadata/instance/compute/name", True),
        ("/metadata/instance/network", True),
        ("/metadata/instance/compute/userData", False),
        ("/metadata/instance/compute/userdata/x", False),
        ("/metadata/instance/compute", False),
        ("/metadata/instance", False),
        ("/metadata", False),
    ],
)
def test_decide_refuses_a_denied_path_and_its_parents_which_contain_it(path: str, allowed: bool) -> None:
    assert verdict(DENIED, path).allowed is allowed
    assert verdict(DENIED, path, Subject()).allowed is allowed, "an unknown client may be the one that is refused"
    assert verdict(DENIED, path, OTHER).allowed


def test_decide_refuses_whatever_another_rule_grants() -> None:
    both = Rules(
        (
            Rule("all", (Who(anyone=True),), (Grant(split("/metadata")),)),
            Rule("not-web", MEANS_WEB, denies=(split("/metadata/identity"),)),
        )
    )
    assert verdict(both, TOKEN) == Verdict(allowed=False, rule="not-web", who="user 33", what="/metadata/identity")
    assert verdict(both, TOKEN, OTHER).allowed


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ("resource=https://vault.azure.net", True),
        ("resource=https://vault.azure.net/&api-version=2018-02-01&bypass_cache=true", True),
        ("resource=https%3a%2f%2fVAULT.azure.net&client_id=ab", True),
        ("client_id=AB&resource=https://vault.azure.net", True),
        ("resource=https://management.azure.com", False),
        ("client_id=ab", False),
        ("", False),
        ("resource=https://vault.azure.net&client_id=cd", False),
        ("resource=https://vault.azure.net&object_id=ab", False),
        ("resource=https://vault.azure.net&CLIENT_ID=cd", False),
        ("resource=https://vault.azure.net&client_id=", False),
        ("resource=https://vault.azure.net&client_id=ab&object_id=cd", False),
        ("resource=https://vault.azure.net&unknown=1", False),
        ("resource=https://vault.azure.net&api-version=1;client_id=cd", False),
        ("resource=https://vault.azure.net/.default", False),
    ],
)
def test_decide_grants_tokens_by_identity_and_audience(query: str, allowed: bool) -> None:
    assert verdict(rules(VAULT), f"{TOKEN}?{query}").allowed is allowed


def test_decide_grants_one_token_path_only_and_by_get() -> None:
    query = "?resource=https://vault.azure.net"
    assert not verdict(rules(VAULT), f"{TOKEN}/x{query}").allowed
    assert not verdict(rules(VAULT), f"/metadata/identity/info{query}").allowed
    assert not verdict(rules(VAULT), TOKEN + query, method="POST").allowed
    assert verdict(
        rules(Grant(split("/metadata/identity"))), "/metadata/identity/issuecredential", method="POST"
    ).allowed


RESERVED = rules(VAULT, allows=True, reserved=(Grant(split("/metadata/identity")),))


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/metadata/instance", "default"),
        (f"{TOKEN}?resource=https://vault.azure.net", "web"),
        (f"{TOKEN}?resource=https://management.azure.com", "reserved"),
        ("/metadata/identity/info", "reserved"),
        ("/metadata", "reserved"),
    ],
)
def test_decide_leaves_reserved_paths_to_those_with_a_grant(path: str, rule: str) -> None:
    found = verdict(RESERVED, path)
    assert (found.rule, found.allowed) == (rule, rule != "reserved")
    assert verdict(RESERVED, path, OTHER).allowed is (rule == "default")


def test_decide_takes_an_unclear_query_for_the_reserved_one() -> None:
    only = rules(allows=True, reserved=(VAULT,))
    assert verdict(only, f"{TOKEN}?resource=https://management.azure.com").allowed
    assert not verdict(only, f"{TOKEN}?resource=https://vault.azure.net").allowed
    assert not verdict(only, f"{TOKEN}?RESOURCE=https://vault.azure.net").allowed


def test_decide_compares_other_parameters_of_a_grant() -> None:
    versioned = rules(Grant(split("/metadata/instance"), parameters=(("api-version", "2021-02-01"),)))
    assert verdict(versioned, "/metadata/instance/compute?api-version=2021-02-01&format=text").allowed
    assert not verdict(versioned, "/metadata/instance?api-version=2019-06-01").allowed
    assert not verdict(versioned, "/metadata/instance").allowed


def test_explain_has_a_line_for_each_rule() -> None:
    known = Rules(
        (
            Rule("web", MEANS_WEB, (VAULT,), (split("/metadata/scheduledevents"),)),
            Rule("all", (Who(anyone=True),), (Grant(split("/metadata/versions"), parameters=(("a", "b"),)),)),
        ),
        reserved=(Grant(split("/metadata/identity")),),
    ).resolved(Names({}, {}))
    lines = list(explain(known, Subject(), "GET", target_of(f"{TOKEN}?RESOURCE=https://vault.azure.net")))
    assert lines == [
        (
            'query: no grant with conditions covers it, because the parameter name "RESOURCE" is not written in plain '
            "lower case"
        ),
        "rule web: user 33: unknown; nothing about this request",
        "rule all: anyone: yes; nothing about this request",
        "reserved: /metadata/identity",
        "default: deny",
    ]
    allowing = Rules(known.rules, default_allows=True, reserved=known.reserved)
    assert list(explain(allowing, WEB, "GET", target_of("/metadata/scheduledevents"))) == [
        "rule web: user 33: yes; refuses /metadata/scheduledevents",
        "rule all: anyone: yes; nothing about this request",
        "default: allow",
    ]
    assert list(explain(known, OTHER, "GET", target_of("/metadata/versions?a=b")))[1:] == [
        "rule all: anyone: yes; grants /metadata/versions with a b",
        "default: deny",
    ]


def test_rules_say_what_they_need_to_know() -> None:
    pods = Rules((Rule("a", MEANS_WEB), Rule("pods", (Who(namespaces=frozenset({"shop"})),))))
    assert (pods.of_users, pods.of_programs, pods.of_pods) == (True, False, "pods")
    programs = Rules((Rule("a", (Who(executables=frozenset({"/bin/a"})),)),))
    assert (programs.of_users, programs.of_programs, programs.of_pods) == (False, True, None)
    assert Rules().mode is Mode.ENFORCE
