"""The table of pods after any changes equals that of a fresh list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.peers.pods import ChangeKind, PodState, PodTable
from imdsproxy.protocol.peer import Pod

ADDRESSES = ("10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.9")
HOST = "10.0.0.9"


@st.composite
def states(draw: st.DrawFn) -> PodState:
    name = draw(st.sampled_from("abcdef"))
    return PodState(
        uid=name,
        pod=Pod("shop", name, draw(st.sampled_from(["web", None]))),
        node=draw(st.sampled_from(["here", "here", "here", "there"])),
        created=draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"])),
        addresses=tuple(draw(st.lists(st.sampled_from(ADDRESSES), max_size=2))),
        host_addresses=(HOST,),
        host_network=draw(st.booleans()),
        finished=draw(st.booleans()),
    )


steps = st.lists(st.tuples(st.sampled_from([*ChangeKind, "list"]), states()), max_size=30)


@given(steps)
def test_table_after_any_changes_equals_that_of_a_fresh_list(steps: list[tuple[ChangeKind | str, PodState]]) -> None:
    table = PodTable("here")
    table.replace([], 0.0)
    cluster: dict[str, PodState] = {}
    for step, state in steps:
        if step == "list":
            cluster[state.uid] = state  # changed while nothing watched
            table.replace(cluster.values(), 0.0)
            continue
        kind = ChangeKind(step)
        if kind is ChangeKind.DELETED:
            cluster.pop(state.uid, None)
        elif kind is not ChangeKind.BOOKMARK:
            cluster[state.uid] = state
        table.change(kind, state, 0.0)
        fresh = PodTable("here")
        fresh.replace(reversed(cluster.values()), 0.0)
        assert [table.find(address, 0.0) for address in ADDRESSES] == [fresh.find(each, 0.0) for each in ADDRESSES]
        assert len(table) == len(fresh)
        assert table.find(HOST, 0.0) is None
