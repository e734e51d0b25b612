"""Decide whether a client may have what it asks for.

The steps, of which the first that applies decides:

1. A rule that means the client refuses the path. The path's parents are refused too, because IMDS's answer about
   `/metadata/instance` contains all that is below it.
2. A rule that means the client grants the path.
3. The path is reserved, or one of its parts is: it is refused to everyone else.
4. The default applies.

What is unknown never grants and always refuses. In step 1 a rule also means a client of whom too little is known, and
in step 3 a query that can be read in two ways counts as reserved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from imdsproxy.access.query import Query, read_query
from imdsproxy.access.rules import DEFAULT, RESERVED, Rule, Rules
from imdsproxy.access.subject import Subject, Who
from imdsproxy.policy.endpoints import Segments, within
from imdsproxy.protocol.messages import Target

_WORDS: dict[bool | None, str] = {True: "yes", False: "no", None: "unknown"}


class Verdict(NamedTuple):
    """A decision and its reason."""

    allowed: bool
    rule: str
    """The name of the rule that decided; `default` or `reserved` if none did."""
    who: str = ""
    """The clients that the rule means, in words."""
    what: str = ""
    """The grant, refused path or reserved path that decided, in words."""


def decide(rules: Rules, subject: Subject, method: str, target: Target) -> Verdict:
    """Return the decision about a request."""
    segments = target.segments
    for rule in rules.rules:
        path = next((path for path in rule.denies if _touches(segments, path)), None)
        if path is not None and (who := _meant(rule, subject, unknown=True)) is not None:
            return Verdict(False, rule.name, _in_words(who), _written(path))  # noqa: FBT003  # the field has a name
    query = read_query(method, target)
    for rule in rules.rules:
        grant = next((grant for grant in rule.grants if grant.covers(segments, query) is True), None)
        if grant is not None and (who := _meant(rule, subject, unknown=False)) is not None:
            return Verdict(True, rule.name, _in_words(who), str(grant))  # noqa: FBT003  # as above
    for grant in rules.reserved:
        if grant.covers(segments, query) is not False or _is_parent(segments, grant.path):
            return Verdict(False, RESERVED, "", str(grant))  # noqa: FBT003  # as above
    return Verdict(rules.default_allows, DEFAULT)


def explain(rules: Rules, subject: Subject, method: str, target: Target) -> Iterator[str]:
    """Yield a line for each rule: whether it means the client, and what of it covers the request."""
    query = read_query(method, target)
    if query.unclear is not None and any(grant.conditional for rule in rules.rules for grant in rule.grants):
        yield f"query: no grant with conditions covers it, because {query.unclear}"
    for rule in rules.rules:
        for who in rule.who:
            compared = "; ".join(f"{words}: {_WORDS[result]}" for words, result in who.compared(subject))
            yield f"rule {rule.name}: {compared}; {_effect(rule, target.segments, query)}"
    for grant in rules.reserved:
        if grant.covers(target.segments, query) is not False or _is_parent(target.segments, grant.path):
            yield f"reserved: {grant}"
    yield f"default: {'allow' if rules.default_allows else 'deny'}"


def _effect(rule: Rule, segments: Segments, query: Query) -> str:
    denied = [_written(path) for path in rule.denies if _touches(segments, path)]
    if denied:
        return f"refuses {denied[0]}"
    granted = [str(grant) for grant in rule.grants if grant.covers(segments, query) is True]
    return f"grants {granted[0]}" if granted else "nothing about this request"


def _meant(rule: Rule, subject: Subject, *, unknown: bool) -> Who | None:
    """Return by which clients a rule means this one, or None. `unknown` counts as a match where it is true."""
    for who in rule.who:
        matches = who.matches(subject)
        if matches or (matches is None and unknown):
            return who
    return None


def _touches(segments: Segments, path: Segments) -> bool:
    return within(segments, (path,)) or _is_parent(segments, path)


def _is_parent(segments: Segments, path: Segments) -> bool:
    """Return whether the answer about `segments` can contain what is at `path`."""
    return segments != path and within(path, (segments,))


def _in_words(who: Who) -> str:
    return ", ".join(words for words, _ in who.compared(Subject()))


def _written(path: Segments) -> str:
    return "/" + "/".join(path)
