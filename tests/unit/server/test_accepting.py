"""The length of a turn of accepting, and the meaning of a failed accept."""

from __future__ import annotations

import errno

import pytest

from imdsproxy.server.accepting import LEAST_TURN, LONGEST_TURN, Failure, failure, turn_seconds


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (0.0, LEAST_TURN),
        (LEAST_TURN, LEAST_TURN),
        (0.02, 0.02),
        (LONGEST_TURN, LONGEST_TURN),
        (60.0, LONGEST_TURN),
    ],
)
def test_turn_lasts_as_long_as_the_other_work_within_limits(others: float, expected: float) -> None:
    assert turn_seconds(others) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EAGAIN, Failure.NONE_LEFT),
        (errno.EWOULDBLOCK, Failure.NONE_LEFT),
        (errno.ECONNABORTED, Failure.GONE),
        (errno.EINTR, Failure.GONE),
        (errno.EPERM, Failure.GONE),
        (errno.EPROTO, Failure.GONE),
        (errno.EMFILE, Failure.NO_ROOM),
        (errno.ENFILE, Failure.NO_ROOM),
        (errno.ENOBUFS, Failure.NO_ROOM),
        (errno.ENOMEM, Failure.NO_ROOM),
        (errno.EINVAL, Failure.NO_ROOM),
        (None, Failure.NO_ROOM),
    ],
)
def test_each_accept_error_has_one_meaning(number: int | None, expected: Failure) -> None:
    assert failure(number) is expected
