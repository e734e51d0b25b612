"""Each fault of IMDS, of the proxy and of its clients: what clients get, what IMDS sees, and the way back.

`run.run` checks what has to hold in every fault. docs/reliability.md has a row for each.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator, Mapping

import pytest

from tests.system.faults import of_proxy, table
from tests.system.faults.clients import Got, check_answer, check_approvals, check_failure
from tests.system.faults.documents import INSTANCE, NETWORK, TOKEN, Asked, say
from tests.system.faults.matrix import ALL, GROUPS, REAL, VIRTUAL, Result, happen, happen_in_virtual_time
from tests.system.faults.run import Outcome

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Result]]:
    """Let all faults happen; most of their time is waiting, so those of a group happen side by side."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    found: dict[str, Result] = {}
    for group in GROUPS:
        possible = [fault for fault in group if fault.name in REAL and not lacks(fault.name)]
        found |= asyncio.run(happen(possible, tmp_path_factory.mktemp("faults")))
    yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def lacks(name: str) -> str:
    """Return what this machine lacks for a fault; empty if it lacks nothing."""
    return "not installed: libfaketime" if name == "clock" and of_proxy.FAKETIME is None else ""


@pytest.mark.parametrize("name", REAL)
def test_fault_of_a_real_proxy_keeps_every_promise(results: Mapping[str, Result], name: str) -> None:
    if lacks(name):
        pytest.skip(lacks(name))
    result = results[name]
    if isinstance(result, BaseException):
        raise result


@pytest.mark.parametrize("name", VIRTUAL)
def test_fault_in_virtual_time_keeps_every_promise(name: str) -> None:
    assert isinstance(happen_in_virtual_time(VIRTUAL[name]), Outcome)


def test_every_fault_has_a_row_and_every_row_has_a_test() -> None:
    """After a change: `make faults` measures, and writes the table."""
    assert {*REAL, *VIRTUAL} == {*ALL}
    assert table.rows() == {name: fault.words for name, fault in ALL.items()}


# --- the checks themselves


def got(body: bytes, at: float) -> Got:
    return Got("", at, at, 200, {}, body)


@pytest.mark.parametrize(
    ("asked", "target", "age"),
    [
        pytest.param(TOKEN + "first", TOKEN + "second", 0.0, id="another's token"),
        pytest.param(INSTANCE, NETWORK, 0.0, id="another answer"),
        pytest.param(NETWORK, NETWORK, 7.0, id="past its stale bound"),
        pytest.param(TOKEN + "short", TOKEN + "short", 4.0, id="past its life"),
    ],
)
def test_broken_promise_is_noticed(asked: str, target: str, age: float) -> None:
    said = say(Asked(0.0, "GET", asked), 100.0)
    check_answer(got(said, 100.0), asked, 0.5)
    with pytest.raises(AssertionError):
        check_answer(got(said, 100.0 + age), target, 0.5)


@pytest.mark.parametrize("fields", [{}, {"retry-after": "0"}])
@pytest.mark.parametrize("body", [b'{"error":"x","error_description":"y"}', b'{"error":"x","error_description":""}'])
def test_failure_that_does_not_say_what_to_do_is_noticed(fields: dict[str, str], body: bytes) -> None:
    own = {"cache-status": "imdsproxy; detail=x"}
    check_failure(Got("", 0.0, 0.0, 502, own | {"retry-after": "1"}, b'{"error":"x","error_description":"y"}'))
    with pytest.raises((AssertionError, KeyError)):
        check_failure(Got("", 0.0, 0.0, 502, own | fields, body))


def test_lost_and_doubled_approvals_are_noticed() -> None:
    confirmed = {b"1": got(b"", 0.0)}
    once = Asked(0.0, "POST", "", b"1")
    check_approvals(confirmed, [once])
    with pytest.raises(AssertionError, match="twice"):
        check_approvals(confirmed, [once, once])
    with pytest.raises(AssertionError, match="had not reached"):
        check_approvals(confirmed, [])
