"""Read nft's JSON: imdsproxy's own redirect, and the rules of other tables that match IMDS's address.

The format is that of libnftables-json(5).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imdsproxy.cli.nftables import TABLE
from imdsproxy.protocol.messages import IMDS_HOST

_IMDS = ipaddress.IPv4Address(IMDS_HOST)
_PORT = 80
_WIDEST = 8  # a match of a larger network than 169.0.0.0/8 is not about IMDS
BLOCKS = frozenset({"drop", "reject"})
"""What keeps calls from IMDS."""
_ACTIONS = ("drop", "reject", "dnat", "redirect", "tproxy")
"""What keeps calls from IMDS or sends them elsewhere. Rules that accept, count or change a source do neither."""


@dataclass(frozen=True, slots=True)
class Redirect:
    """imdsproxy's own table as it is loaded."""

    host: str = ""
    """Where calls go; empty if the table redirects none of this machine's."""
    port: int = 0
    exempt: str = ""
    """The exempt user, by number or name; empty if there is none."""
    node: bool = False
    """Whether forwarded calls are redirected too."""
    guarded: bool = False
    """Whether loopback is guarded against packets from outside."""
    root_exempt: bool = False
    """Whether root is exempt beside that user, as on a node."""
    exclusive: bool = False
    """Whether only the exempt user and root may answer at the proxy's address."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of another table that matches IMDS's address."""

    table: str
    chain: str
    hooks: frozenset[str]
    """The hooks from which the rule is reached."""
    priority: int
    """The lowest priority of the chains from which it is reached."""
    action: str
    """What it does with the calls: `drop`, `reject`, `dnat`, `redirect` or `tproxy`."""
    goal: str = ""
    """Where it sends the calls, if that is known."""

    def __str__(self) -> str:
        goal = f" to {self.goal}" if self.goal else ""
        return f"{self.action}{goal} in table {self.table}, chain {self.chain}"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the loaded rules say about IMDS."""

    own: Redirect | None
    """None if imdsproxy's table is not loaded."""
    others: tuple[Rule, ...] = ()


def read_ruleset(text: str) -> Ruleset:
    """Return what `nft --json list ruleset` says about IMDS. Raise ValueError if it is not that output."""
    try:
        return _Reader(list(json.loads(text)["nftables"])).ruleset()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"nft's JSON has an unknown form ({type(error).__name__})") from None


Chain = tuple[str, str]
"""A table and the name of a chain in it."""


def keeps_pods_away(rule: Rule) -> bool:
    """Return whether a rule blocks what the machine forwards, and not its own calls, as AKS's IMDS restriction does."""
    return rule.action in BLOCKS and "forward" in rule.hooks and "output" not in rule.hooks


class _Reader:
    def __init__(self, items: list[Mapping[str, Any]]) -> None:
        self._tables = {f"{item['table']['family']} {item['table']['name']}" for item in items if "table" in item}
        chains = [item["chain"] for item in items if "chain" in item]
        self._chains: dict[Chain, Mapping[str, Any]] = {(_table(chain), chain["name"]): chain for chain in chains}
        self._rules = [item["rule"] for item in items if "rule" in item]
        self._sets = {
            (_table(item["set"]), item["set"]["name"]): item["set"].get("elem", ()) for item in items if "set" in item
        }
        self._callers: dict[Chain, set[Chain]] = {}
        for rule in self._rules:
            for target in _jumps(rule["expr"]):
                self._callers.setdefault((_table(rule), target), set()).add(_chain(rule))

    def ruleset(self) -> Ruleset:
        own = [rule for rule in self._rules if _table(rule) == TABLE]
        loaded = TABLE in self._tables
        others = (self._other(rule) for rule in self._rules if _table(rule) != TABLE and self._is_about_imds(rule))
        return Ruleset(_own(own) if loaded else None, tuple(rule for rule in others if rule is not None))

    def _is_about_imds(self, rule: Mapping[str, Any]) -> bool:
        addressed = False
        for match in _matches(rule["expr"]):
            field = match["left"].get("payload", {}).get("field")
            if field == "daddr" and match["op"] in {"==", "in"}:
                addressed = addressed or self._covers(rule, match["right"])
            elif field == "dport" and _PORT not in self._ports(rule, match["right"]):
                return False
        return addressed

    def _covers(self, rule: Mapping[str, Any], value: object) -> bool:
        return any(_has_imds(each) for each in self._values(rule, value))

    def _ports(self, rule: Mapping[str, Any], value: object) -> set[object]:
        found: set[object] = set()
        for each in self._values(rule, value):
            if isinstance(each, dict) and "range" in each:
                first, last = each["range"]
                found |= {_PORT} if first <= _PORT <= last else set()
            elif not isinstance(each, dict):
                found.add(each)
        return found

    def _values(self, rule: Mapping[str, Any], value: object) -> Iterator[object]:
        """Yield the values of a match: one value, those of an anonymous set, or those of a named one."""
        if isinstance(value, dict) and "set" in value:
            value = value["set"]
        elif isinstance(value, str) and value.startswith("@"):
            value = self._sets.get((_table(rule), value[1:]), ())
        for each in value if isinstance(value, list | tuple) else (value,):
            yield each["elem"]["val"] if isinstance(each, dict) and "elem" in each else each

    def _other(self, rule: Mapping[str, Any]) -> Rule | None:
        """Return a rule about IMDS, or None if it is reached from no hook or changes nothing."""
        known = (self._chains.get(chain, {}) for chain in self._reached_from(_chain(rule)))
        bases = [chain for chain in known if "hook" in chain]
        action, goal = _action(rule["expr"])
        if not bases or not action:
            return None
        hooks = frozenset(str(base["hook"]) for base in bases)
        return Rule(_table(rule), rule["chain"], hooks, min(int(base.get("prio", 0)) for base in bases), action, goal)

    def _reached_from(self, chain: Chain) -> set[Chain]:
        found, left = {chain}, [chain]
        while left:
            callers = self._callers.get(left.pop(), set()) - found
            found |= callers
            left += callers
        return found


def _own(rules: list[Mapping[str, Any]]) -> Redirect:
    host, port = "", 0
    users: list[str] = []
    for rule in rules:
        if rule["chain"] != "output":
            continue
        users.extend(
            str(match["right"])
            for match in _matches(rule["expr"])
            if match["left"] == {"meta": {"key": "skuid"}} and match["op"] == "!="
        )
        for item in rule["expr"]:
            if "dnat" in item:
                host, port = str(item["dnat"].get("addr", "")), int(item["dnat"].get("port", 0))
    chains = {rule["chain"] for rule in rules}
    return Redirect(
        host,
        port,
        exempt=users[-1] if users else "",
        node="prerouting" in chains,
        guarded="guard" in chains,
        root_exempt="0" in users[:-1],
        exclusive="answer" in chains,
    )


def _table(item: Mapping[str, Any]) -> str:
    return f"{item['family']} {item['table']}"


def _chain(rule: Mapping[str, Any]) -> Chain:
    return _table(rule), rule["chain"]


def _matches(expressions: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for item in expressions:
        if "match" in item and isinstance(item["match"]["left"], dict):
            yield item["match"]


def _jumps(expressions: list[Mapping[str, Any]]) -> list[str]:
    calls = [item.get("jump") or item.get("goto") for item in expressions]
    return [call["target"] for call in calls if call]


def _action(expressions: list[Mapping[str, Any]]) -> tuple[str, str]:
    """Return what a rule does, and where it sends the calls, each empty if it does nothing of the kind."""
    for item in expressions:
        xt = item.get("xt") or {}
        if xt.get("type") == "target" and xt["name"].lower() in _ACTIONS:  # a target of iptables; nft knows no more
            return xt["name"].lower(), ""
        for action in _ACTIONS:
            if action in item:
                goal = item[action] or {}
                return action, f"{goal.get('addr', '')}:{goal.get('port', '')}".rstrip(":")
    return "", ""


def _has_imds(value: object) -> bool:
    """Return whether an address, prefix or range includes IMDS's, and is not simply most of the internet."""
    try:
        if isinstance(value, str):
            return ipaddress.IPv4Address(value) == _IMDS
        if isinstance(value, dict) and "prefix" in value:
            prefix = value["prefix"]
            return prefix["len"] >= _WIDEST and _IMDS in ipaddress.IPv4Network(f"{prefix['addr']}/{prefix['len']}")
        if isinstance(value, dict) and "range" in value:
            first, last = (ipaddress.IPv4Address(each) for each in value["range"])
            return first <= _IMDS <= last
    except ValueError:  # an IPv6 address, or a name
        return False
    return False
