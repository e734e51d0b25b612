"""What a proxy exports after one of every event, in virtual time."""

from __future__ import annotations

from functools import cache

from prometheus_client.parser import text_string_to_metric_families

from imdsproxy.access.decision import Verdict
from imdsproxy.access.guard import RefusedAccess
from imdsproxy.access.subject import Subject
from imdsproxy.protocol.messages import BudgetClass
from imdsproxy.records import UpstreamAttempt
from tests.scripted import Imds, Stage, ok, token
from tests.targets import EVENTS, INSTANCE, TOKEN
from tests.virtual import run

_EVENTS = '{"DocumentIncarnation":1,"Events":[]}'


@cache
def full_text() -> bytes:
    """Return the metrics with every family that can be exported, and a sample of each."""

    async def steps() -> bytes:
        answers = {TOKEN: token(3600), EVENTS: ok(_EVENTS)}
        stage = Stage(Imds(lambda sent: answers.get(sent.target, ok())), metrics_by_client=2)
        metrics = stage.parts.metrics
        for target in (INSTANCE, INSTANCE, TOKEN, EVENTS):
            metrics.observe(await stage.get(target), 0.01)
        metrics.observe_attempt(UpstreamAttempt("token", BudgetClass.IDENTITY, 0.2, "200", 0.3, "410"))
        metrics.observe_attempt(UpstreamAttempt("token", BudgetClass.IDENTITY, 0.2, None))
        metrics.access.observe(RefusedAccess(Verdict(allowed=False, rule="web"), Subject(), "GET", "/", enforced=True))
        metrics.watch_readiness(lambda: True)
        metrics.watch_connections(lambda: 2, 100)
        text, _ = await metrics.answer("")
        await stage.proxy.fetches.close()
        return text

    return run(steps())


@cache
def exported() -> dict[str, tuple[str, frozenset[str]]]:
    """Return the type and the labels of every metric, by the name under which Prometheus stores it."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in text_string_to_metric_families(full_text().decode()):
        for sample in family.samples:
            known = found.get(sample.name, ("", frozenset()))[1]
            found[sample.name] = family.type, known | frozenset(sample.labels)
    return found
