"""What each client has cost."""

from __future__ import annotations

from imdsproxy.ops.attribution import Attribution, Use


def test_requests_permits_and_refusals_are_counted_by_client() -> None:
    table = Attribution()
    for name in ("a", "b", "b", "c"):
        table.add_request(name)
    table.add_sent("a")
    table.add_refused("b")
    assert table.top(10) == (Use("a", 1, 1, 0), Use("b", 0, 2, 1), Use("c", 0, 1, 0))
    assert table.top(1) == (Use("a", 1, 1, 0),)


def test_new_client_takes_the_place_of_the_one_that_did_least() -> None:
    table = Attribution(2)
    for _ in range(5):
        table.add_sent("busy")
    table.add_request("once")
    table.add_request("new")
    assert table.top(10) == (Use("busy", 5, 0, 0), Use("new", 0, 1, 0))


def test_busy_client_is_listed_among_any_number_of_others() -> None:
    table = Attribution(8)
    for number in range(1000):
        table.add_request(f"other {number}")
        table.add_sent("busy")
    assert table.top(1)[0] == Use("busy", 1000)
    assert len(table.top(100)) == 8


def test_client_that_begins_late_is_listed() -> None:
    table = Attribution(4)
    for number in range(400):
        table.add_request(f"other {number}")
    for number in range(300):
        table.add_request("late")
        table.add_request(f"another {number}")
    assert "late" in [use.name for use in table.top(4)]
