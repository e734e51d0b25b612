"""The bucket of permits, by its rules. Times are seconds; nothing waits."""

from __future__ import annotations

import itertools
import math

import pytest

from imdsproxy.budget.bucket import Budget, Permit

NOW = 1_000.0


def taken(budget: Budget, count: int, now: float = NOW, lease: float = math.inf) -> list[Permit]:
    return [took(budget, now, lease) for _ in range(count)]


def wait(budget: Budget, now: float) -> float:
    seconds = budget.reserve(now)
    assert isinstance(seconds, float)
    return seconds


def took(budget: Budget, now: float = NOW, lease: float = math.inf) -> Permit:
    permit = budget.reserve(now, lease)
    assert isinstance(permit, Permit)
    return permit


def test_new_budget_has_every_permit_once() -> None:
    budget = Budget(5, 1.0)
    assert budget.available(NOW) == 5
    taken(budget, 5)
    assert budget.available(NOW) == 0
    assert budget.reserve(NOW) == math.inf, "only an answer can bring one back"


def test_permit_returns_one_window_after_the_answer() -> None:
    budget = Budget(1, 1.0)
    budget.release(took(budget), NOW + 3)
    assert budget.reserve(NOW + 3.5) == pytest.approx(0.5)
    took(budget, NOW + 4)


def test_reserve_returns_the_wait_for_the_first_permit() -> None:
    budget = Budget(2, 1.0)
    one, other = taken(budget, 2)
    budget.release(one, NOW + 0.4)
    budget.release(other, NOW + 0.1)
    assert budget.reserve(NOW + 0.5) == pytest.approx(0.6)


def test_unused_permit_returns_at_once() -> None:
    budget = Budget(1, 1.0)
    budget.release_unused(took(budget))
    took(budget)


def test_concurrent_limit_bounds_requests_in_flight() -> None:
    budget = Budget(20, 1.0, concurrent=5)
    first, *_ = taken(budget, 5)
    assert budget.available(NOW) == 0
    assert budget.reserve(NOW) == math.inf
    budget.release(first, NOW)
    assert budget.available(NOW) == 1
    took(budget)


class TestThrottling:
    def test_retry_after_blocks_every_permit(self) -> None:
        budget = Budget(5, 1.0)
        permit = took(budget)
        budget.throttled(NOW, NOW + 0.1, 7)
        budget.release(permit, NOW + 0.1)
        assert budget.available(NOW + 7) == 0
        assert budget.reserve(NOW + 2.1) == pytest.approx(5.0)
        took(budget, NOW + 7.1)
        assert budget.rate(NOW + 7.1) == 1.0, "IMDS said what it wants; the rate stays"

    def test_shorter_retry_after_does_not_replace_a_longer_one(self) -> None:
        budget = Budget(5, 1.0)
        budget.throttled(NOW, NOW, 7)
        budget.throttled(NOW, NOW, 1)
        assert budget.reserve(NOW) == pytest.approx(7)

    def test_without_retry_after_the_rate_halves_after_one_blocked_window(self) -> None:
        budget = Budget(5, 1.0)
        permit = took(budget)
        budget.throttled(NOW, NOW, None)
        budget.release(permit, NOW)
        assert budget.rate(NOW) == 0.5
        assert budget.reserve(NOW + 0.25) == pytest.approx(0.75)
        taken(budget, 4, NOW + 1)
        back = NOW + 1.5 + wait(budget, NOW + 1.5)
        assert (back - NOW) * budget.rate(back) == pytest.approx(1.0), "the fifth rests for window ÷ rate"
        assert back < NOW + 2, "at the rate that has been won back by then"

    def test_resting_permits_rest_longer_at_a_lower_rate(self) -> None:
        budget = Budget(1, 1.0)
        budget.release(took(budget), NOW)
        assert budget.reserve(NOW + 0.5) == pytest.approx(0.5)
        for moment, at_least in ((NOW + 0.5, NOW + 1.5), (NOW + 0.6, NOW + 2.5)):
            budget.throttled(moment, moment, None)
            back = moment + wait(budget, moment)
            assert (back - NOW) * budget.rate(back) == pytest.approx(1.0)
            assert back > at_least

    def test_concurrent_429s_halve_the_rate_once(self) -> None:
        budget = Budget(5, 1.0)
        for _ in range(5):
            budget.throttled(NOW, NOW + 0.2, None)
        assert budget.rate(NOW + 0.2) == 0.5
        budget.throttled(NOW + 2.2, NOW + 2.2, None)
        assert budget.rate(NOW + 2.2) == pytest.approx(0.3)

    def test_rate_recovers_slowly_up_to_the_full_rate(self) -> None:
        budget = Budget(5, 1.0)
        budget.throttled(NOW, NOW, None)
        rates = [budget.rate(NOW + second) for second in (0, 1, 5, 10, 1_000)]
        assert rates == pytest.approx([0.5, 0.55, 0.75, 1.0, 1.0])

    def test_rate_never_falls_below_its_minimum(self) -> None:
        budget = Budget(5, 1.0)
        for second in range(100):
            budget.throttled(NOW + second, NOW + second, None)
            assert budget.rate(NOW + second) >= 1 / 32


class TestExpectedWait:
    @pytest.mark.parametrize(
        ("ahead", "seconds"),
        [(0, 0.0), (4, 0.0), (5, 1.0), (9, 1.0), (10, 2.0), (49, 9.0), (50, 10.0), (59, 11.0)],
    )
    def test_counts_rounds_of_the_window(self, ahead: int, seconds: float) -> None:
        assert Budget(5, 1.0).expected_wait(ahead, NOW) == pytest.approx(seconds)

    def test_counts_the_time_that_requests_hold_their_tokens(self) -> None:
        budget = Budget(1, 1.0)
        for round_ in range(60):  # long enough for the running mean to settle on half a second
            begin = NOW + 2 * round_
            budget.release(took(budget, begin), begin + 0.5)
        end = NOW + 2 * 59 + 0.5
        assert budget.expected_wait(0, end) == pytest.approx(1.0)
        assert budget.expected_wait(2, end) == pytest.approx(1.0 + 2 * 1.5, rel=1e-3)

    def test_assumes_that_requests_in_flight_were_just_sent(self) -> None:
        budget = Budget(2, 1.0)
        taken(budget, 2)
        assert budget.expected_wait(0, NOW) == pytest.approx(1.0)

    def test_is_no_shorter_than_a_retry_after(self) -> None:
        budget = Budget(5, 1.0)
        budget.throttled(NOW, NOW, 30)
        assert budget.expected_wait(0, NOW) == pytest.approx(30)


def test_release_with_counts_false_leaves_the_estimate_unchanged() -> None:
    budget = Budget(1, 1.0)
    budget.release(took(budget, 0.0), 120.0, counts=False)
    assert budget.expected_wait(0, 120.0) == 1.0
    budget.release(took(budget, 121.0), 123.0)
    assert budget.expected_wait(1, 123.0) == pytest.approx(1.0 + 1.0 + 0.2 * 2.0)


class TestLease:
    def test_overdue_request_is_expected_to_last_until_the_lease_ends(self) -> None:
        budget = Budget(1, 1.0)
        took(budget, lease=17.0)
        assert budget.expected_wait(0, NOW + 4.9) == pytest.approx(1.0)
        assert budget.expected_wait(0, NOW + 5.0) == pytest.approx(13.0)
        assert budget.expected_wait(0, NOW + 17.5) == pytest.approx(0.5)

    def test_request_without_a_lease_is_expected_to_end_soon(self) -> None:
        budget = Budget(1, 1.0)
        took(budget)
        assert budget.expected_wait(0, NOW + 60) == pytest.approx(1.0)

    def test_number_of_permits_may_exceed_the_concurrent_limit(self) -> None:
        # As after a damaged budget has started again.
        budget = Budget(20, 1.0, concurrent=5)
        budget.state.rests_from = [NOW + 17] * 20
        assert budget.available(NOW) == 0

    def test_end_of_a_lease_counts_as_the_answer(self) -> None:
        budget = Budget(1, 1.0)
        took(budget, lease=17.0)
        assert budget.reserve(NOW + 10) == pytest.approx(8.0)
        assert budget.available(NOW + 17.9) == 0
        took(budget, NOW + 18)

    def test_answer_after_the_end_of_the_lease_delays_the_permit_too(self) -> None:
        budget = Budget(1, 1.0)
        budget.release(took(budget, lease=17.0), NOW + 2)
        late = took(budget, NOW + 3, lease=17.0)
        budget.release(late, NOW + 20.5)
        assert budget.reserve(NOW + 20.5) == pytest.approx(1.0)

    def test_late_release_does_not_free_the_permit_of_another_holder(self) -> None:
        budget = Budget(1, 1.0)
        late = took(budget, lease=17.0)
        other = took(budget, NOW + 18, lease=17.0)
        budget.release(late, NOW + 19)
        budget.release_unused(late)
        assert budget.reserve(NOW + 20) == pytest.approx(16.0)
        budget.release(other, NOW + 20)
        took(budget, NOW + 21)

    def test_permits_with_an_ended_lease_are_not_in_flight(self) -> None:
        budget = Budget(3, 1.0, concurrent=1)
        took(budget, lease=17.0)
        assert budget.reserve(NOW + 16) == math.inf
        took(budget, NOW + 17)


class TestHeadStart:
    """Waiting processes wake up together. Those without recent permits go first, background refreshes last."""

    def shared(self, requests: int = 2) -> Budget:
        return Budget(requests, 1.0, loans=itertools.count(1))

    def test_process_without_recent_permits_waits_for_no_other(self) -> None:
        one, other = self.shared(), self.shared()
        other.state = one.state
        for budget in (one, other):
            budget.state.rests_from[:] = [NOW - 1.0] * 2
            took(budget)

    @pytest.mark.parametrize(("later", "seconds"), [(0.5, 0.02), (1.0, 0.02), (2.0, 0.01), (20.0, 0.001)])
    def test_head_start_of_others_shrinks_with_time(self, later: float, seconds: float) -> None:
        budget = self.shared(1)
        took(budget)
        budget.state.rests_from[0] = NOW + later - 1.0  # another has given it back, so that it is back at this moment
        assert wait(budget, NOW + later) == pytest.approx(seconds)
        took(budget, NOW + later + seconds + 1e-6)

    def test_background_refresh_waits_for_all_clients(self) -> None:
        budget = self.shared(1)
        budget.state.rests_from[0] = NOW - 1.0
        found = budget.reserve(NOW, background=True)
        assert found == pytest.approx(0.05)
        assert isinstance(budget.reserve(NOW + 0.051, background=True), Permit)

    def test_own_budget_has_no_head_start(self) -> None:
        budget = Budget(2, 1.0)
        took(budget)
        assert isinstance(budget.reserve(NOW, background=True), Permit)
