from __future__ import annotations

import math

from imdsproxy.ops.episodes import FORGOTTEN_AFTER, RETURNS_WITHIN, Ended, Episode, seconds


def test_first_sign_begins_an_episode_and_the_good_one_ends_it() -> None:
    episode = Episode()
    assert (episode.under_way, episode.due, episode.end(0.0)) == (False, math.inf, None)
    assert [episode.trouble(10.0), episode.trouble(11.0)] == [True, False]
    assert episode.under_way
    assert episode.end(12.0) is None
    episode.good(13.0)
    assert episode.end(13.0) == Ended(3.0, 2, forgotten=False)
    assert (episode.under_way, episode.due, episode.end(13.0)) == (False, math.inf, None)


def test_good_sign_without_trouble_changes_nothing() -> None:
    episode = Episode()
    episode.good(1.0)
    assert episode.end(1.0) is None
    assert episode.trouble(2.0)
    assert episode.end(2.0) is None


def test_trouble_after_a_good_sign_continues_an_episode_that_has_not_settled() -> None:
    episode = Episode(10.0)
    episode.trouble(0.0)
    episode.good(1.0)
    assert (episode.due, episode.end(9.9)) == (10.0, None)
    assert not episode.trouble(9.9)
    assert episode.end(20.0) is None, "the good sign is before the trouble"
    episode.good(15.0)
    episode.good(16.0)
    assert episode.end(19.8) is None
    assert episode.end(20.0) == Ended(15.0, 2, forgotten=False)


def test_trouble_that_passes_ends_by_settling_and_lasts_until_its_last_sign() -> None:
    episode = Episode(10.0, passes=True)
    for now in (0.0, 5.0, 14.0):
        episode.trouble(now)
    assert (episode.due, episode.end(23.9)) == (24.0, None)
    assert episode.end(24.0) == Ended(14.0, 3, forgotten=False)


def test_trouble_that_comes_and_goes_is_one_episode_from_the_second_time_on() -> None:
    episode = Episode()
    lines = []
    for turn in range(100):
        now = 2.0 * turn
        if episode.trouble(now):
            lines.append(("begins", now))
        episode.good(now + 1.0)
        if episode.end(now + 1.0) is not None:
            lines.append(("ends", now + 1.0))
    assert lines == [("begins", 0.0), ("ends", 1.0), ("begins", 2.0)]
    last = 198.0
    assert episode.due == last + RETURNS_WITHIN
    assert episode.end(last + RETURNS_WITHIN) == Ended(last + 1.0 - 2.0, 99, forgotten=False)


def test_trouble_long_after_another_ends_at_once_again() -> None:
    episode = Episode()
    episode.trouble(0.0)
    episode.good(1.0)
    assert episode.end(1.0) is not None
    episode.trouble(1.0 + RETURNS_WITHIN)
    episode.good(65.0)
    assert episode.end(65.0) == Ended(4.0, 1, forgotten=False)


def test_episode_of_which_nothing_is_heard_is_forgotten() -> None:
    episode = Episode()
    episode.trouble(0.0)
    episode.trouble(5.0)
    assert episode.due == 5.0 + FORGOTTEN_AFTER
    assert episode.end(5.0 + FORGOTTEN_AFTER) == Ended(5.0, 2, forgotten=True)


def test_durations_are_logged_in_tenths_of_a_second() -> None:
    assert seconds(72.34999) == 72.3
