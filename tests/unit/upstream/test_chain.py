"""What is known of another imdsproxy behind the upstream."""

from __future__ import annotations

import logging

import pytest

from imdsproxy.testing.clock import FakeClock
from imdsproxy.upstream.chain import Chain


@pytest.mark.parametrize(
    ("assumed", "answers", "proxied", "gone"),
    [
        (None, [True], [False], [False]),
        (False, [False, True, True, False], [False, True, True, False], [False, False, False, True]),
        (True, [True, False, False], [True, False, False], [False, True, False]),
    ],
    ids=["IMDS itself", "a stranger", "a Unix socket"],
)
def test_chain_knows_by_the_last_answer_whether_another_proxy_spends_the_permits(
    assumed: bool | None, answers: list[bool], proxied: list[bool], gone: list[bool]
) -> None:
    chain = Chain(assumed, FakeClock(), max_wait=10)
    assert chain.proxied is bool(assumed)
    learnt = [(chain.learn(by_proxy=answer), chain.proxied) for answer in answers]
    assert learnt == list(zip(gone, proxied, strict=True))


@pytest.mark.parametrize(("assumed", "most"), [(True, 256), (False, 5), (None, 5)])
def test_fewer_requests_at_once_go_to_an_upstream_that_is_not_known_to_be_a_proxy(
    assumed: bool | None, most: int
) -> None:
    assert Chain(assumed, FakeClock(), max_wait=10).limiter.budget.requests == most


def test_loop_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    clock = FakeClock()
    chain = Chain(None, clock, max_wait=10)
    for _ in range(3):
        chain.log_loop("it came back")
    clock.advance(59.9)
    chain.log_loop("it came back")
    assert len(caplog.records) == 1
    clock.advance(0.1)
    chain.log_loop("it came back")
    assert len(caplog.records) == 2
