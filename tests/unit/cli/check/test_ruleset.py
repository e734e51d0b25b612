"""What is read out of nft's JSON. The objects are those of nft 1.0.6; `tests/system` reads them from a real kernel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imdsproxy.cli.check.ruleset import Redirect, Rule, Ruleset, read_ruleset

IMDS = "169.254.169.254"


def chain(table: str, name: str, hook: str = "", priority: int = 0) -> dict[str, Any]:
    family, _, table = table.partition(" ")
    base = {"type": "filter", "hook": hook, "prio": priority, "policy": "accept"} if hook else {}
    return {"chain": {"family": family, "table": table, "name": name, **base}}


def rule(table: str, name: str, *expressions: dict[str, Any]) -> dict[str, Any]:
    family, _, table = table.partition(" ")
    return {"rule": {"family": family, "table": table, "chain": name, "expr": list(expressions)}}


def match(field: str, right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"payload": {"protocol": "ip", "field": field}}, "right": right}}


def read(*items: dict[str, Any]) -> Ruleset:
    of = {(item["chain"]["family"], item["chain"]["table"]) for item in items if "chain" in item}
    tables = [{"table": {"family": family, "name": name}} for family, name in sorted(of)]
    return read_ruleset(json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *tables, *items]}))


def seen(*expressions: dict[str, Any]) -> tuple[Rule, ...]:
    """Return what is seen of one rule in a chain of the output hook."""
    return read(chain("ip filter", "OUTPUT", "output"), rule("ip filter", "OUTPUT", *expressions)).others


DROP: dict[str, Any] = {"drop": None}
DPORT = match("dport", 80)
OWN = "ip imdsproxy"
USER = {"match": {"op": "!=", "left": {"meta": {"key": "skuid"}}, "right": 990}}
DNAT = {"dnat": {"addr": "127.0.0.1", "port": 8254}}


def test_empty_ruleset_has_no_redirect() -> None:
    assert read() == Ruleset(None)


def test_own_table_is_read() -> None:
    found = read(
        chain(OWN, "output", "output", -110),
        rule(OWN, "output", match("daddr", IMDS), DPORT, USER, {"counter": {"packets": 0, "bytes": 0}}, DNAT),
    )
    assert found == Ruleset(Redirect("127.0.0.1", 8254, "990"))


def test_node_redirect_is_read() -> None:
    found = read(
        chain(OWN, "output", "output", -110),
        rule(OWN, "output", match("daddr", IMDS), {"match": {"op": "==", "left": "x", "right": 1}}, USER, DNAT),
        rule(OWN, "prerouting", match("daddr", IMDS), DNAT),
        rule(OWN, "guard", match("daddr", {"prefix": {"addr": "127.0.0.0", "len": 8}}), DROP),
        rule(OWN, "answer", USER, DROP),
    )
    assert found.own == Redirect("127.0.0.1", 8254, "990", node=True, guarded=True, exclusive=True)


def test_root_beside_the_proxys_user_is_read() -> None:
    root = {"match": {"op": "!=", "left": {"meta": {"key": "skuid"}}, "right": 0}}
    found = read(chain(OWN, "output", "output", -110), rule(OWN, "output", match("daddr", IMDS), root, USER, DNAT))
    assert found.own == Redirect("127.0.0.1", 8254, "990", root_exempt=True)
    found = read(chain(OWN, "output", "output", -110), rule(OWN, "output", match("daddr", IMDS), root, DNAT))
    assert found.own == Redirect("127.0.0.1", 8254, "0")


def test_own_table_without_chains_is_a_redirect_to_nowhere() -> None:
    assert read({"table": {"family": "ip", "name": "imdsproxy"}}).own == Redirect()
    assert read({"table": {"family": "inet", "name": "imdsproxy"}}).own is None


def test_own_table_without_rules_is_a_redirect_to_nowhere() -> None:
    assert read(chain(OWN, "output", "output", -110)).own == Redirect()


def test_own_redirect_without_exemption_is_read_as_such() -> None:
    same_user = {"match": {**USER["match"], "op": "=="}}
    found = read(chain(OWN, "output", "output"), rule(OWN, "output", match("daddr", IMDS), same_user, DNAT))
    assert found.own == Redirect("127.0.0.1", 8254, "")


@pytest.mark.parametrize(
    "value",
    [
        IMDS,
        {"prefix": {"addr": "169.254.0.0", "len": 16}},
        {"range": ["169.254.169.250", "169.254.169.255"]},
        {"set": ["10.0.0.1", IMDS]},
        {"set": [{"elem": {"val": IMDS, "comment": "theirs"}}]},
    ],
)
def test_rule_for_an_address_that_includes_imds_is_seen(value: object) -> None:
    assert seen(match("daddr", value), DROP) == (Rule("ip filter", "OUTPUT", frozenset({"output"}), 0, "drop"),)


@pytest.mark.parametrize(
    "value",
    [
        "169.254.169.253",
        "fe80::1",
        "a-name",
        {"prefix": {"addr": "0.0.0.0", "len": 0}},
        {"prefix": {"addr": "10.0.0.0", "len": 8}},
        {"range": ["10.0.0.1", "10.0.0.9"]},
        {"concat": [IMDS, 80]},
        "@no-such-set",
        17,
    ],
)
def test_rule_for_another_address_is_left_out(value: object) -> None:
    assert seen(match("daddr", value), DROP) == ()


def test_rule_for_all_but_imds_is_left_out() -> None:
    assert seen(match("daddr", IMDS, "!="), DROP) == ()


@pytest.mark.parametrize("value", [80, {"set": [80, 443]}, {"range": [1, 1024]}, {"set": [{"range": [79, 81]}, 443]}])
def test_rule_for_port_80_is_seen(value: object) -> None:
    assert len(seen(match("daddr", IMDS), match("dport", value), DROP)) == 1


@pytest.mark.parametrize("value", [53, {"set": [443, 8080]}, {"range": [1024, 65535]}, {"prefix": {}}])
def test_rule_for_another_port_is_left_out(value: object) -> None:
    assert seen(match("daddr", IMDS), match("dport", value), DROP) == ()


@pytest.mark.parametrize(
    ("expression", "action", "goal"),
    [
        ({"drop": None}, "drop", ""),
        ({"reject": {"type": "icmp", "expr": 3}}, "reject", ""),
        ({"dnat": {"addr": "10.0.0.9", "port": 2579}}, "dnat", "10.0.0.9:2579"),
        ({"dnat": {"addr": "10.0.0.9"}}, "dnat", "10.0.0.9"),
        ({"redirect": {"port": 2579}}, "redirect", ":2579"),
        ({"redirect": None}, "redirect", ""),
        ({"xt": {"type": "target", "name": "DNAT"}}, "dnat", ""),
        ({"xt": {"type": "target", "name": "REJECT"}}, "reject", ""),
    ],
)
def test_action_and_goal_of_a_rule_are_read(expression: dict[str, Any], action: str, goal: str) -> None:
    (found,) = seen(match("daddr", IMDS), DPORT, {"counter": {"packets": 0, "bytes": 0}}, expression)
    assert (found.action, found.goal) == (action, goal)


@pytest.mark.parametrize(
    "expression",
    [
        {"accept": None},
        {"return": None},
        {"masquerade": None},
        {"xt": {"type": "target", "name": "MASQUERADE"}},
        {"xt": {"type": "match", "name": "comment"}},
        {"xt": None},
    ],
)
def test_rule_that_neither_blocks_nor_redirects_is_left_out(expression: dict[str, Any]) -> None:
    assert seen(match("daddr", IMDS), expression) == ()


def test_named_set_is_looked_up_in_its_table() -> None:
    items = [chain("inet x", "o", "output"), rule("inet x", "o", match("daddr", "@s"), DROP)]
    there = {"set": {"family": "inet", "table": "x", "name": "s", "elem": [IMDS]}}
    elsewhere = {"set": {"family": "ip", "table": "x", "name": "s", "elem": [IMDS]}}
    assert len(read(*items, there).others) == 1
    assert read(*items, elsewhere).others == ()
    assert read(*items, {"set": {"family": "inet", "table": "x", "name": "s"}}).others == ()


def test_rule_has_the_hooks_and_the_lowest_priority_of_the_chains_that_lead_to_it() -> None:
    table = "ip nat"
    found = read(
        chain(table, "PREROUTING", "prerouting", -100),
        chain(table, "OUTPUT", "output", -150),
        chain(table, "between"),
        chain(table, "aad-metadata"),
        rule(table, "PREROUTING", {"jump": {"target": "between"}}),
        rule(table, "OUTPUT", {"goto": {"target": "between"}}),
        rule(table, "between", {"jump": {"target": "aad-metadata"}}),
        rule(table, "aad-metadata", {"jump": {"target": "between"}}),
        rule(table, "aad-metadata", match("daddr", IMDS), DPORT, {"dnat": {"addr": "10.0.0.9", "port": 2579}}),
    ).others
    hooks = frozenset({"prerouting", "output"})
    assert found == (Rule(table, "aad-metadata", hooks, -150, "dnat", "10.0.0.9:2579"),)
    assert str(found[0]) == "dnat to 10.0.0.9:2579 in table ip nat, chain aad-metadata"


def test_rule_that_no_hook_reaches_is_left_out() -> None:
    assert read(chain("ip x", "unused"), rule("ip x", "unused", match("daddr", IMDS), DROP)).others == ()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"nftables": null}', "not JSON", '{"nftables": [{"rule": {}}]}', '{"nftables": [7]}', "[" * 9999],
)
def test_other_output_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="unknown form"):
        read_ruleset(text)
