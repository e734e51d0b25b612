"""Accepting in turns: the number of connections, the pauses, and their log lines."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest

from imdsproxy.server import acceptor
from imdsproxy.server.accepting import LEAST_TURN, LONGEST_TURN, MOST_UNSERVED, PAUSE
from imdsproxy.server.acceptor import Acceptor


@pytest.fixture(autouse=True)
def _accept_without_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "accept_at", lambda listening: listening.accept)


class Listening:
    """A listening socket at which connections, given by numbers, and errors of accept(2) wait."""

    def __init__(self, waiting: Iterable[int | OSError]) -> None:
        self.waiting = list(waiting)

    def accept(self) -> tuple[int, str]:
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "none waits")
        first = self.waiting.pop(0)
        if isinstance(first, OSError):
            if first.errno == errno.EMFILE:
                self.waiting.insert(0, first)  # it stays so until a descriptor is free
            raise first
        return first, "its address"


class Loop:
    """An event loop whose turns a test starts."""

    def __init__(self) -> None:
        self.reader: Callable[[], None] | None = None
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.cancelled = 0

    def add_reader(self, _listening: object, callback: Callable[[], None]) -> None:
        assert self.reader is None
        self.reader = callback

    def remove_reader(self, _listening: object) -> None:
        assert self.reader is not None
        self.reader = None

    def call_later(self, delay: float, callback: Callable[[], None]) -> Loop:
        self.timers.append((delay, callback))
        return self

    def cancel(self) -> None:
        self.cancelled += 1

    def turn(self) -> None:
        assert self.reader is not None
        self.reader()


class House:
    """An acceptor with all that it needs; each connection takes `cost` seconds."""

    def __init__(self, *waiting: int | OSError, cost: float = 0.0) -> None:
        self.listening = Listening(waiting)
        self.loop = Loop()
        self.time = 100.0
        self.cost = cost
        self.taken: list[int] = []
        self.room = 1_000_000
        self.serve: Callable[[], bool] = lambda: True
        self.acceptor = Acceptor(
            cast("Any", self.listening),
            cast("Any", self.loop),
            self._take,
            is_full=lambda: len(self.taken) >= self.room,
            now=lambda: self.time,
        )
        self.acceptor.start()

    def _take(self, connection: object, address: object) -> bool:
        assert address == "its address"
        self.taken.append(cast("int", connection))
        self.time += self.cost
        return self.serve()


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_one_turn_accepts_every_waiting_connection() -> None:
    house = House(*range(4000))
    house.loop.turn()
    assert house.taken == list(range(4000))


def test_turn_accepts_a_bounded_number_of_unserved_connections() -> None:
    house = House(*range(4000))
    house.serve = lambda: False
    house.loop.turn()
    house.loop.turn()
    assert house.taken == list(range(2 * MOST_UNSERVED))


def test_served_connections_do_not_count_against_those_of_a_turn() -> None:
    house = House(*range(4000))
    served = iter([True, True, False] * 4000)
    house.serve = lambda: next(served)
    house.loop.turn()
    assert house.taken == list(range(3 * MOST_UNSERVED))


def test_turn_lasts_as_long_as_other_work_and_the_next_one_continues() -> None:
    house = House(*range(1000), cost=0.001)
    house.time += 0.02
    house.loop.turn()
    assert len(house.taken) == pytest.approx(20, abs=1)
    house.time += 0.03
    house.loop.turn()
    assert len(house.taken) == pytest.approx(50, abs=2)


@pytest.mark.parametrize(("others", "seconds"), [(0.0, LEAST_TURN), (5.0, LONGEST_TURN)])
def test_turn_has_a_minimum_and_a_maximum(others: float, seconds: float) -> None:
    house = House(*range(1000), cost=0.001)
    house.time += others
    house.loop.turn()
    assert len(house.taken) == pytest.approx(seconds / 0.001, abs=1)


def test_disconnected_clients_do_not_end_a_turn() -> None:
    house = House(_error(errno.ECONNABORTED), 1, _error(errno.EPROTO), _error(errno.ECONNABORTED), 2)
    house.loop.turn()
    assert house.taken == [1, 2]


def test_acceptor_accepts_only_as_many_as_fit() -> None:
    house = House(1, 2, 3)
    house.room = 2
    house.loop.turn()
    assert house.taken == [1, 2]
    house.room = 3
    house.loop.turn()
    assert house.taken == [1, 2, 3]


def test_lack_of_descriptors_pauses_accepting_and_both_changes_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(1, _error(errno.EMFILE), 2, 3)
    with caplog.at_level(logging.INFO, "imdsproxy.server.acceptor"):
        house.loop.turn()
        for _ in range(3):
            assert house.loop.reader is None, "it does not spin"
            delay, resume = house.loop.timers.pop()
            assert delay == PAUSE
            resume()
            house.loop.turn()
        assert house.taken == [1]
        del house.listening.waiting[0]
        house.loop.timers.pop()[1]()
        house.loop.turn()
    assert house.taken == [1, 2, 3]
    assert _said(caplog) == [
        ("WARNING", "no connection can be accepted; new ones wait"),
        ("INFO", "connections are accepted again"),
    ]
    assert vars(caplog.records[0])["fields"]["because"] == os.strerror(errno.EMFILE)


def test_lack_of_descriptors_that_comes_and_goes_is_logged_twice_at_most_until_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    with caplog.at_level(logging.INFO, "imdsproxy.server.acceptor"):
        for number in range(50):
            house.time += 0.5
            house.listening.waiting = [number, _error(errno.ENOBUFS)]
            house.loop.turn()
            house.loop.timers.pop()[1]()
        house.listening.waiting = [50]
        house.loop.turn()
        assert [level for level, _ in _said(caplog)] == ["WARNING", "INFO", "WARNING"]
        (check,) = [call for delay, call in house.loop.timers if delay > PAUSE]
        check()
        assert len(_said(caplog)) == 3, "it is too early"
        house.time += 60
        house.loop.timers.pop()[1]()
    assert [level for level, _ in _said(caplog)] == ["WARNING", "INFO"] * 2
    assert [vars(record)["fields"].get("seconds") for record in caplog.records] == [None, 0.5, None, 24.0]


def test_close_during_the_check_for_an_end_leaves_no_timer() -> None:
    house = House()
    for number in range(3):
        house.listening.waiting = [number, _error(errno.ENOBUFS)]
        house.loop.turn()
        house.loop.timers.pop()[1]()
    house.listening.waiting = [3]
    house.loop.turn()
    house.acceptor.close(accept_waiting=False)
    assert house.loop.cancelled == 1


def test_close_accepts_waiting_connections() -> None:
    house = House(*range(500))
    house.serve = lambda: False
    house.acceptor.close(accept_waiting=True)
    assert house.taken == list(range(500))
    assert house.loop.reader is None


def test_close_leaves_waiting_connections_of_an_inherited_socket() -> None:
    house = House(1, 2)
    house.acceptor.close(accept_waiting=False)
    assert house.taken == []
    assert house.loop.reader is None


def test_close_during_a_pause_leaves_no_timer() -> None:
    house = House(_error(errno.EMFILE))
    house.loop.turn()
    house.acceptor.close(accept_waiting=True)
    assert house.loop.cancelled == 1


def test_failure_of_take_does_not_end_accepting() -> None:
    house = House(1, 2)

    def take(_connection: object, _address: object) -> bool:
        raise RuntimeError("a fault")

    broken = Acceptor(
        cast("Any", house.listening),
        cast("Any", Loop()),
        take,
        is_full=lambda: False,
        now=lambda: house.time,
    )
    with pytest.raises(RuntimeError, match="a fault"):
        broken._turn()
    house.loop.turn()
    assert house.taken == [2]
