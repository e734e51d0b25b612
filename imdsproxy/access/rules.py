"""The rules as values.

A **rule** says who (`Who`), what they get (`Grant`), and what is refused to them. A grant is a path and everything
below it. It can have conditions: the identity and the audience of an access token, or values of query parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from imdsproxy.access.query import Query, comparable
from imdsproxy.access.subject import Names, Who
from imdsproxy.policy.endpoints import Segments, within

DEFAULT = "default"
"""The name in a verdict where no rule decides."""
RESERVED = "reserved"
"""The name in a verdict where a path is reserved, and no rule grants it."""
OWN_NAMES = frozenset({DEFAULT, RESERVED})


class Mode(StrEnum):
    """What a refusal does."""

    ENFORCE = "enforce"
    AUDIT = "audit"
    """Nothing: the request is served, and the refusal is only logged and counted."""
    DISABLED = "disabled"
    """The rules are not compared at all. Only a profile of Azure's can say so."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A path, and the conditions on its query."""

    path: Segments
    below: bool = True
    """Whether everything below the path is granted too."""
    identities: frozenset[tuple[str, str]] = frozenset()
    """The identities whose tokens are granted, as `Query.identity` has them; empty for every identity."""
    audiences: frozenset[str] = frozenset()
    """The audiences of granted tokens, as `Query.audience` has them; empty for every audience."""
    parameters: tuple[tuple[str, str], ...] = ()
    """Further query parameters, by lower-case name, with their values in lower case."""

    @property
    def conditional(self) -> bool:
        """Whether it depends on the query."""
        return bool(self.identities or self.audiences or self.parameters)

    def covers(self, segments: Segments, query: Query) -> bool | None:
        """Return whether it covers a request; None if the request's query can be read in more than one way."""
        if not (within(segments, (self.path,)) if self.below else segments == self.path):
            return False
        if not self.conditional:
            return True
        if query.unclear is not None:
            return None
        if self.identities and query.identity not in self.identities:
            return False
        if self.audiences and query.audience not in self.audiences:
            return False
        return all(query.value(name) == value for name, value in self.parameters)

    def __str__(self) -> str:
        conditions = [
            *_listed("identity", ["=".join(filter(None, one)) for one in self.identities]),
            *_listed("resource", self.audiences),
            *(f"{name} {value}" for name, value in self.parameters),
        ]
        path = "/" + "/".join(self.path)
        return path if not conditions else f"{path} with {', '.join(conditions)}"


def identity(kind: str, value: str = "") -> tuple[str, str]:
    """Return an identity in the form in which identities are compared."""
    return kind, comparable(value)


@dataclass(frozen=True, slots=True)
class Rule:
    """What some clients get, and what is refused to them."""

    name: str
    who: tuple[Who, ...]
    """The clients; one that matches any of these is meant."""
    grants: tuple[Grant, ...] = ()
    denies: tuple[Segments, ...] = ()
    """Paths that are refused, with everything below them."""


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a file."""

    rules: tuple[Rule, ...] = ()
    default_allows: bool = False
    """Whether a request about which no rule says anything is allowed."""
    mode: Mode = Mode.ENFORCE
    reserved: tuple[Grant, ...] = ()
    """What only those get to whom a rule grants it, even where the default allows."""
    strict_names: bool = True
    """Whether a user or group that this machine does not have is a mistake, and not one of another machine."""

    @property
    def of_pods(self) -> str | None:
        """The first rule that can be compared only where pods are known, or None."""
        return next((rule.name for rule in self.rules for who in rule.who if who.of_pods), None)

    @property
    def of_users(self) -> bool:
        """Whether the user of a client is needed."""
        return any(who.of_users for rule in self.rules for who in rule.who)

    @property
    def of_groups(self) -> bool:
        """Whether the groups of a client's user are needed."""
        return any(who.of_groups for rule in self.rules for who in rule.who)

    @property
    def refusing(self) -> tuple[str, ...]:
        """The names that a refusal can have."""
        by_rule = (rule.name for rule in self.rules if rule.denies)
        others = (DEFAULT if not self.default_allows else "", RESERVED if self.reserved else "")
        return (*by_rule, *filter(None, others))

    @property
    def users(self) -> frozenset[str | int]:
        """The users that rules name."""
        return frozenset(user for rule in self.rules for who in rule.who for user in who.users | who.unix_users)

    @property
    def groups(self) -> frozenset[str | int]:
        """The groups that rules name."""
        return frozenset(group for rule in self.rules for who in rule.who for group in who.groups)

    @property
    def of_programs(self) -> bool:
        """Whether the program of a client is needed."""
        return any(who.of_programs for rule in self.rules for who in rule.who)

    def resolved(self, names: Names) -> Rules:
        """Return the rules with the ids of users and groups."""
        return replace(
            self,
            rules=tuple(replace(rule, who=tuple(who.resolved(names) for who in rule.who)) for rule in self.rules),
        )


def _listed(kind: str, values: list[str] | frozenset[str]) -> list[str]:
    return [f"{kind} {' or '.join(sorted(values))}"] if values else []
