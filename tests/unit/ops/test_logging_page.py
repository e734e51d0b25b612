"""`docs/logging.md` has an example of every line about a trouble, and explains every field of the access log."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from imdsproxy.ops.access_log import FIELDS
from imdsproxy.ops.episodes import FORGOTTEN_AFTER, Event
from imdsproxy.ops.troubles import Troubles
from imdsproxy.protocol.messages import BudgetClass, Refusal, Response
from imdsproxy.protocol.peer import Peer
from imdsproxy.protocol.target import read_target
from imdsproxy.records import UpstreamAttempt
from tests.targets import INSTANCE, TOKEN

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "logging.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^\S+Z (\w+) imdsproxy\.troubles (.*?)((?: \w+=(?:\"[^\"]*\"|\S+))+)$", re.MULTILINE)
REFUSED = Response(403, (), json.dumps({"error": "forbidden"}).encode())


def attempt(
    status: str | None = "200", endpoint: str = "instance", response: Response | None = None
) -> UpstreamAttempt:
    target = read_target((TOKEN if endpoint == "token" else INSTANCE).encode())
    assert not isinstance(target, Refusal)
    failure = None if status in {None, "200", "403"} else f"status {status}"
    return UpstreamAttempt(
        endpoint,
        BudgetClass.GENERAL,
        0.0,
        status,
        client=Peer(user=1000),
        target=target,
        failure=failure,
        response=response,
    )


def every_event() -> list[Event]:
    troubles = Troubles(1000)
    bad = [
        *(attempt(status) for status in ("upstream-unreachable", "410", "429", "descriptors", None)),
        attempt("403", "token", REFUSED),
    ]
    events = [event for each in bad for event in troubles.observe_attempt(each, None, 0.0)]
    events += troubles.observe_eviction(3, 0.0)
    events += troubles.observe_refusal("memory", "user 1000", 0.0)
    for each in (attempt(), attempt(endpoint="token")):
        events += troubles.observe_attempt(each, None, 100.0)
    events += troubles.observe_attempt(attempt("403", "token", REFUSED), 60.0, 200.0)
    events += troubles.observe_attempt(attempt(endpoint="token"), None, 300.0)
    for each in (attempt("403", "token", REFUSED), attempt("500", "attested")):
        events += troubles.observe_attempt(each, 60.0, 400.0)
    return events + list(troubles.settle(400.0 + FORGOTTEN_AFTER))


def test_page_has_an_example_of_every_trouble_with_its_fields() -> None:
    documented = {
        (message, level, tuple(re.findall(r'(\w+)=(?:"[^"]*"|\S+)', fields)))
        for level, message, fields in EXAMPLE.findall(PAGE)
    }
    logged = {(event.message, "info" if event.over else "warning", tuple(event.fields)) for event in every_event()}
    # The remaining life is there only if a token is cached, so an example has it or another example does.
    known = documented | {
        (message, level, fields[:-1]) for message, level, fields in documented if "expires_in" in fields
    }
    assert logged <= known
    assert {message for message, *_ in documented} == {event.message for event in every_event()}


@pytest.mark.parametrize(
    "message",
    [
        "no connection can be accepted; new ones wait",
        "too many connections; new ones are refused",
        "connections are accepted again",
        "log lines dropped",
        "start failed",
    ],
)
def test_page_names_the_other_lines_with_an_end(message: str) -> None:
    assert message in PAGE
    sources = Path(__file__).resolve().parents[3] / "imdsproxy"
    assert any(f'"{message}"' in file.read_text(encoding="utf-8") for file in sources.rglob("*.py"))


def test_page_explains_every_field_of_the_access_log_in_its_order() -> None:
    section = PAGE.partition("## The access log\n")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == FIELDS
