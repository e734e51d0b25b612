"""Whatever happens to events, every change of their list raises DocumentIncarnation, and nothing else does."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.emulator.event_kinds import KINDS, EventError
from imdsproxy.emulator.events import ScheduledEvents
from imdsproxy.emulator.schedule import EVENT_VERSIONS

SECONDS = st.sampled_from([0.0, 1.0, 5.0, 30.0, 600.0])
ADD = st.tuples(st.just("add"), st.sampled_from(list(KINDS)), SECONDS, st.none() | SECONDS, st.none() | SECONDS)
ON_ONE = st.tuples(st.sampled_from(["remove", "cancel", "approve"]), st.integers(0, 5))
WAIT = st.tuples(st.just("wait"), st.sampled_from([-100.0, 0.0, 1.0, 5.0, 29.0, 300.0, 4_000.0]))


@given(st.lists(st.one_of(ADD, ON_ONE, WAIT, st.just(("clear",)), st.just(("reset",))), max_size=30))
def test_incarnation_grows_with_every_change_and_with_nothing_else(steps: list[tuple[object, ...]]) -> None:
    now = [1_000.0]
    events = ScheduledEvents(wall=lambda: now[0])
    document = events.document(EVENT_VERSIONS[-1], now[0])
    for number, step in enumerate(steps):
        match step:
            case ["add", str(kind), float(after), notice, duration]:
                arguments = {"notice": notice, "duration": -1 if duration is None else duration}
                events.add(kind, after=after, event_id=str(number), **arguments)  # type: ignore[arg-type]
            case [("remove" | "cancel" | "approve") as method, int(index)]:
                with contextlib.suppress(EventError):
                    getattr(events, method)(str(index))
            case ["wait", float(seconds)]:
                now[0] += seconds
            case [str(method)]:
                getattr(events, method)()
        before, document = document, events.document(EVENT_VERSIONS[-1], now[0])
        changed = document["Events"] != before["Events"]
        grown = document["DocumentIncarnation"] - before["DocumentIncarnation"]
        assert grown >= changed, f"a change that step {number} made is not counted"
        assert grown >= 0
        if step[0] in {"remove", "cancel", "approve"}:
            assert grown == changed
