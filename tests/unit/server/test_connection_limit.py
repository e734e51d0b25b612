"""The limit of connections: which make room, which are refused, and how often that is logged."""

from __future__ import annotations

import logging

import pytest

from imdsproxy.server.connection_limit import ADMIN_RESERVE, ANSWERED, RESERVE, Admission, ConnectionLimit, room


class Connection:
    """A member that counts how often it is looked at."""

    def __init__(self, idle_since: float | None = None, *, unread: bool = False) -> None:
        self.since = idle_since
        self.unread = unread
        self.looks = 0
        self.closed = False

    @property
    def idle_since(self) -> float | None:
        self.looks += 1
        return self.since

    def close_idle(self) -> bool:
        self.closed = not self.unread
        return self.closed


def _filled(limit: int, *members: Connection) -> ConnectionLimit:
    connection_limit = ConnectionLimit(limit)
    for member in members:
        assert connection_limit.admit(member, 0.0) is Admission.STAY
    return connection_limit


def test_connection_idle_for_longest_makes_room() -> None:
    members = [Connection(3.0), Connection(), Connection(1.0), Connection(2.0)]
    connection_limit = _filled(4, *members)
    assert connection_limit.admit(Connection(), 5.0) is Admission.STAY
    assert [member.closed for member in members] == [False, False, True, False]


def test_count_includes_connections_until_they_have_ended() -> None:
    members = [Connection(1.0), Connection()]
    connection_limit = _filled(2, *members)
    assert connection_limit.count == 2
    new = Connection()
    connection_limit.admit(new, 5.0)
    assert members[0].closed
    assert connection_limit.count == 3, "the one that makes room has its descriptor until the loop's next turn"
    connection_limit.leave(members[0])
    assert connection_limit.count == 2
    connection_limit.leave(new)
    assert connection_limit.count == 1


def test_connection_whose_request_has_just_arrived_stays() -> None:
    members = [Connection(1.0, unread=True), Connection(2.0), Connection(3.0, unread=True)]
    connection_limit = _filled(3, *members)
    assert connection_limit.admit(Connection(), 5.0) is Admission.STAY
    assert [member.closed for member in members] == [False, True, False]
    assert connection_limit.admit(Connection(), 5.0) is Admission.ANSWER, "none that could be closed is left"


def test_ended_connection_frees_its_place() -> None:
    members = [Connection(1.0) for _ in range(4)]
    connection_limit = _filled(4, *members)
    connection_limit.leave(members[0])
    assert connection_limit.admit(Connection(), 5.0) is Admission.STAY
    assert not any(member.closed for member in members)


def test_full_crowd_answers_some_connections_then_closes_all() -> None:
    connection_limit = _filled(4, *(Connection() for _ in range(4)))
    admissions = [connection_limit.admit(Connection(), 1.0) for _ in range(ANSWERED + 5)]
    assert admissions == [Admission.ANSWER] * ANSWERED + [Admission.CLOSE] * 5


def test_admin_has_room_beyond_the_limit() -> None:
    connection_limit = _filled(4, *(Connection() for _ in range(4)))
    admissions = [connection_limit.admit(Connection(), 1.0, admin=True) for _ in range(ADMIN_RESERVE + 1)]
    assert admissions == [Admission.STAY] * ADMIN_RESERVE + [Admission.ANSWER]


def test_new_connection_checks_a_bounded_number_of_others() -> None:
    members = [Connection() for _ in range(20_000)]
    connection_limit = _filled(len(members), *members)
    connection_limit.admit(Connection(), 1.0)
    assert sum(member.looks for member in members) <= 2048


def test_every_connection_is_checked_in_turn() -> None:
    members = [*(Connection() for _ in range(5000)), Connection(1.0)]
    connection_limit = _filled(len(members), *members)
    for number in range(20):
        connection_limit.admit(Connection(), float(number))
    assert members[-1].closed


def test_search_for_idle_connections_pauses_after_a_failed_one() -> None:
    members = [Connection() for _ in range(4)]
    connection_limit = _filled(4, *members)
    connection_limit.admit(Connection(), 1.0)
    seen = members[0].looks
    members[0].since = 1.0
    assert connection_limit.admit(Connection(), 1.01) is Admission.ANSWER
    assert members[0].looks == seen
    assert connection_limit.admit(Connection(), 1.2) is Admission.STAY
    assert members[0].closed


def test_begin_and_end_of_refusals_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    members = [Connection() for _ in range(10)]
    connection_limit = _filled(10, *members)
    refused = [Connection() for _ in range(7)]
    with caplog.at_level(logging.INFO, "imdsproxy.server.connection_limit"):
        for each in refused:
            connection_limit.admit(each, 1.0)
        for each in (*refused, *members[:5]):
            connection_limit.leave(each)
        connection_limit.admit(Connection(), 2.0)
        connection_limit.admit(Connection(), 3.0)
    said = [(record.levelname, record.getMessage(), vars(record)["fields"]) for record in caplog.records]
    assert [(level, message.partition(";")[0]) for level, message, _ in said] == [
        ("WARNING", "too many connections"),
        ("INFO", "connections are accepted again"),
    ]
    assert said[1][2] == {"seconds": 1.0, "refused": 7}


@pytest.mark.parametrize("descriptors", [64, 100, 200, 1024, 16384, 65536])
def test_limit_reserves_descriptors_for_imds_and_refusals(descriptors: int) -> None:
    found = room(descriptors)
    assert found >= ADMIN_RESERVE
    if descriptors >= 200:
        assert found + max(ANSWERED, ADMIN_RESERVE) + RESERVE <= descriptors


def test_closing_members_count_until_they_have_ended() -> None:
    members = [Connection(float(number)) for number in range(200)]
    connection_limit = _filled(len(members), *members)
    taken = 0
    while not connection_limit.is_spent:
        assert connection_limit.admit(Connection(), 500.0) is Admission.STAY
        taken += 1
    closed = [member for member in members if member.closed]
    assert taken <= ANSWERED + 1
    assert len(members) + taken <= connection_limit.limit + ANSWERED
    for member in closed:
        connection_limit.leave(member)
    assert not connection_limit.is_spent


def test_full_crowd_without_closing_members_is_not_spent() -> None:
    connection_limit = _filled(4, *(Connection() for _ in range(4)))
    for _ in range(ANSWERED + 5):
        connection_limit.admit(Connection(), 1.0)
        assert not connection_limit.is_spent
