"""Observers are told of each upstream attempt. What a fetch does is tested with the whole proxy, in `tests/proxy`."""

from __future__ import annotations

from imdsproxy.budget.bucket import Budget
from imdsproxy.budget.limiter import Limiter
from imdsproxy.policy.decisions import Cache, Lifetimes
from imdsproxy.protocol.failures import FailureRules
from imdsproxy.protocol.messages import BudgetClass, Headers, Request, Response, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.records import UpstreamAttempt
from imdsproxy.upstream.collapsing import CollapsedFetch
from imdsproxy.upstream.fetcher import Fetcher
from imdsproxy.upstream.retry import RetryRules
from imdsproxy.upstream.task import FetchTask
from tests import virtual

ENDPOINT = "versions"


class Upstream:
    """Answers with one status after another."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses)

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response:
        del method, target, headers, body, slow
        return Response(self._statuses.pop(0), (), b'{"apiVersions":["2021-02-01"]}')


def fetch(upstream: Upstream, observed: list[list[UpstreamAttempt]]) -> None:
    async def scenario() -> None:
        clock = virtual.VirtualClock()
        limiter = Limiter(Budget(5, 1.0), clock, max_wait=0.0)
        fetcher = Fetcher(
            limiters=dict.fromkeys(BudgetClass, limiter),
            upstream=upstream,
            failure_rules=FailureRules(),
            retry_rules=RetryRules(),
            clock=clock,
            instance="this one",
            observers=[each.append for each in observed],
        )
        target = read_target(b"/metadata/versions")
        assert isinstance(target, Target)
        task = FetchTask(Request("GET", target), Cache(ENDPOINT, BudgetClass.GENERAL, Lifetimes(60)))
        await fetcher.fetch(task, CollapsedFetch(None, task.ticket()))

    virtual.run(scenario())


def test_every_observer_is_told_the_same_record_of_each_attempt() -> None:
    observed: list[list[UpstreamAttempt]] = [[], []]
    fetch(Upstream(500, 200), observed)
    one, other = observed
    assert [(each.endpoint, each.status, each.retried_after) for each in one] == [
        (ENDPOINT, "500", None),
        (ENDPOINT, "200", "500"),
    ]
    assert [id(each) for each in one] == [id(each) for each in other]
