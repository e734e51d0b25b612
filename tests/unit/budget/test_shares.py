"""The permits that one endpoint may hold. The effect is tested in `tests/proxy/test_hanging_endpoints.py`."""

from __future__ import annotations

import math

from imdsproxy.budget.shares import SILENCE, Recall, Shares

SHARE = 2


def lent(shares: Shares, kind: str, numbers: range, now: float = 0.0) -> list[int]:
    """Lend permits whose requests can be recalled; returns the list to which recalled ones are added."""
    ended: list[int] = []
    for number in numbers:
        shares.lend(number, kind, now, Recall(lambda number=number: ended.append(number)))  # type: ignore[misc]
    return ended


def test_endpoint_alone_may_have_every_permit() -> None:
    shares = Shares()
    lent(shares, "x", range(5))
    assert shares.full(SHARE, ["x"], 0.5) == frozenset()


def test_endpoint_is_full_at_its_share_while_another_waits() -> None:
    shares = Shares()
    lent(shares, "x", range(1))
    assert shares.full(SHARE, ["x", "y"], 0.0) == frozenset()
    lent(shares, "x", range(1, 2))
    assert shares.full(SHARE, ["x", "y"], 0.0) == {"x"}


def test_two_endpoints_at_their_shares_do_not_block_each_other() -> None:
    shares = Shares()
    lent(shares, "x", range(2))
    lent(shares, "y", range(2, 4))
    assert shares.full(SHARE, ["x", "y"], 0.0) == frozenset()
    assert shares.full(SHARE, ["x", "y", "z"], 0.0) == {"x", "y"}


def test_endpoint_with_unrecallable_requests_is_always_full_at_its_share() -> None:
    shares = Shares()
    for number in range(2):
        shares.lend(number, "x", 0.0, None)
    assert shares.full(SHARE, ["x"], 0.0) == {"x"}


def test_request_without_an_endpoint_has_no_share() -> None:
    shares = Shares()
    lent(shares, "", range(5))
    assert shares.full(SHARE, ["", "x"], 9.0) == frozenset()
    shares.end(0, 9.0, answered=True)


def test_silent_endpoint_is_full_at_its_share_until_it_answers() -> None:
    shares = Shares()
    lent(shares, "x", range(3))
    assert shares.full(SHARE, ["x"], SILENCE) == {"x"}
    shares.end(0, SILENCE, answered=True)
    assert shares.full(SHARE, ["x"], SILENCE + 0.5) == frozenset()


def answer_later_one(shares: Shares, at: float) -> None:
    """End a request of another endpoint with an answer, so that IMDS has read everything sent before it."""
    shares.lend(99, "y", at, None)
    shares.end(99, at, answered=True)


def test_recall_ends_the_newest_requests_beyond_the_share_once() -> None:
    shares = Shares()
    ended = lent(shares, "x", range(5))
    answer_later_one(shares, 0.2)
    assert shares.recall(SHARE, 0.5) == SILENCE
    assert ended == []
    assert shares.recall(SHARE, SILENCE) == math.inf
    assert shares.recall(SHARE, SILENCE) == math.inf
    assert ended == [4, 3, 2]


def test_recall_ends_one_possibly_unread_request_until_a_later_one_is_answered() -> None:
    shares = Shares()
    ended = lent(shares, "x", range(5))
    shares.recall(SHARE, 2.0)
    shares.end(4, 2.0, answered=False)
    shares.recall(SHARE, 9.0)
    assert ended == [4], "IMDS may have stopped altogether"
    answer_later_one(shares, 0.0)
    shares.recall(SHARE, 9.0)
    assert ended == [4], "sent no later than these"
    answer_later_one(shares, 3.0)
    shares.recall(SHARE, 9.0)
    assert ended == [4, 3, 2]


def test_recall_spares_an_endpoint_within_its_share() -> None:
    shares = Shares()
    ended = lent(shares, "x", range(2))
    assert shares.recall(SHARE, 9.0) == math.inf
    assert ended == []


def test_recall_skips_unrecallable_and_unsent_requests_and_looks_again() -> None:
    shares = Shares()
    shares.lend(1, "x", 0.0, None)
    ended = lent(shares, "x", range(2, 4))
    answer_later_one(shares, 0.5)
    shares.lend(4, "x", 1.5, Recall())
    shares.lend(5, "x", 1.5, None)
    assert 2.0 < shares.recall(SHARE, 2.0) < 2.0 + SILENCE
    assert ended == [3, 2]


def test_endpoint_that_hung_is_full_at_its_share_until_it_answers_promptly() -> None:
    shares = Shares()
    lent(shares, "x", range(1))
    shares.end(0, 30.0, answered=False)
    lent(shares, "x", range(2), 31.0)
    assert shares.full(SHARE, ["x"], 31.0) == {"x"}, "though nothing else waits"
    shares.end(0, 33.0, answered=True)
    lent(shares, "x", range(2, 3), 33.0)
    assert shares.full(SHARE, ["x"], 33.0) == {"x"}, "that was slow"
    shares.end(2, 33.1, answered=True)
    lent(shares, "x", range(3, 5), 33.1)
    assert shares.full(SHARE, ["x"], 33.2) == frozenset()


def test_immediate_failure_does_not_count_as_hanging() -> None:
    shares = Shares()
    lent(shares, "x", range(3))
    shares.end(2, 0.1, answered=False)
    assert shares.full(SHARE, ["x"], 0.1) == frozenset()


def test_unused_permit_is_forgotten() -> None:
    shares = Shares()
    lent(shares, "x", range(2))
    shares.forget(0)
    shares.forget(1)
    shares.forget(1)
    assert shares.full(SHARE, ["x", "y"], 9.0) == frozenset()


def test_recall_of_one_request_obeys_the_rule_about_what_imds_has_perhaps_not_read() -> None:
    shares = Shares()
    ended: list[int] = []
    recalls = [Recall(lambda number=number: ended.append(number)) for number in range(3)]  # type: ignore[misc]
    for number, recall in enumerate(recalls):
        shares.lend(number, "x", float(number), recall)
    assert [shares.recall_one(recall) for recall in recalls] == [True, False, False]
    assert not shares.recall_one(recalls[0]), "it is recalled already"
    shares.lend(3, "y", 3.0, None)
    shares.end(3, 3.5, answered=True)  # so IMDS has read what was sent before
    assert [shares.recall_one(recall) for recall in recalls[1:]] == [True, True]
    assert ended == [0, 1, 2]
    assert not shares.recall_one(Recall(lambda: None)), "it has no permit"
    assert not Recall().take_effect(), "it is not at IMDS"
