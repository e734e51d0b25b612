"""The steps of `imdsproxy check` for any combination of what a machine can show: each returns one finding."""

from __future__ import annotations

import contextlib
import json
from dataclasses import fields
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.cli.check import report
from imdsproxy.cli.check.answers import Exchange
from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import Finding, Status
from imdsproxy.cli.check.ruleset import Redirect, Ruleset, read_ruleset
from imdsproxy.cli.check.steps.order import STEPS, judge
from tests.unit.cli.check.test_steps import FLAT

TEXTS = st.text(max_size=12)
ODD = Ruleset(Redirect("{'map': 1}", 0, "a name", node=True))
ANY_EXCHANGE = st.builds(
    Exchange,
    asked=TEXTS,
    proxied=st.booleans(),
    status=st.none() | st.integers(100, 599),
    fields=st.lists(
        st.tuples(st.sampled_from(("server", "date", "age", "cache-status")), TEXTS | st.just("imdsproxy")), max_size=4
    ).map(tuple),
    body=TEXTS | st.sampled_from(("{}", "[]", '{"apiVersions": [1]}', '{"apiVersions": {}}')),
    trouble=st.sampled_from(("refused", "timeout", "unreachable", "denied", "broken")),
)


def values(name: str) -> st.SearchStrategy[Any]:
    """Return every value that a fact has in the cases of the steps, mixed with what others may send."""
    found = st.sampled_from([getattr(facts, name) for _, _, _, facts in FLAT])
    if name == "versions":
        return found | ANY_EXCHANGE
    if name in {"without_metadata", "forwarded", "redirected"}:
        return found | ANY_EXCHANGE | st.none()
    return found | st.just(ODD) if name == "ruleset" else found


FACTS = st.builds(Facts, **{field.name: values(field.name) for field in fields(Facts)})


@given(FACTS)
def test_every_step_returns_one_finding_with_what_to_do(facts: Facts) -> None:
    for finding in judge(facts).values():
        assert finding.found
        assert (finding.status is Status.OK) == (finding.code == "")
        if finding.status in {Status.WARNING, Status.FAILURE}:
            assert finding.advice


FINDINGS = st.dictionaries(
    st.sampled_from(tuple(STEPS)),
    st.builds(Finding, st.sampled_from(Status), TEXTS, TEXTS, TEXTS, TEXTS),
    min_size=1,
)


@given(FINDINGS)
def test_report_has_a_line_for_each_finding_whatever_its_text(findings: dict[str, Finding]) -> None:
    *lines, blank, _total, end = report.text(findings, colour=False).split("\n")
    assert (blank, end) == ("", "")
    assert len(lines) == len(findings) + sum(finding.advice != "" for finding in findings.values())
    assert len(json.loads(report.as_json(findings))["steps"]) == len(findings)


@given(
    st.recursive(
        st.none() | st.integers() | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    )
)
def test_any_json_of_nft_is_read_or_refused(value: object) -> None:
    for document in (value, {"nftables": value}, {"nftables": [{"rule": value}]}, {"nftables": [{"chain": value}]}):
        read(json.dumps(document))


def read(text: str) -> None:
    """Read nft's JSON. Any exception but the documented one fails the test."""
    with contextlib.suppress(ValueError):
        read_ruleset(text)
