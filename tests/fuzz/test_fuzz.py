"""Inputs that were faults once, and a bounded search for others. `make fuzz` searches for longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imdsproxy.protocol.messages import Key, Target
from tests.fuzz import __main__ as search
from tests.fuzz import harnesses
from tests.fuzz.harnesses import HARNESSES, Harness
from tests.size import examples

REGRESSIONS = Path(__file__).parent / "regressions"
FOUND = sorted(path for path in REGRESSIONS.glob("*/*") if path.is_file())

# Tracing would multiply the time, and other tests reach the same branches.
pytestmark = pytest.mark.no_cover

# The rig of a connection builds six proxies for an input.
_SLOW = {"connection"}


def test_input_that_was_read_wrongly_is_read_rightly() -> None:
    for path in FOUND:
        HARNESSES[path.parent.name].run(path.read_bytes())


def test_search_keeps_an_input_that_is_read_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(data: bytes) -> None:
        assert data != b"fault"

    monkeypatch.setitem(HARNESSES, "token", Harness(fails, (b"fault",)))
    monkeypatch.setattr(search, "REGRESSIONS", tmp_path)
    with pytest.raises(AssertionError):
        search.search("token", 60)
    assert [path.read_bytes() for path in tmp_path.glob("token/*")] == [b"fault"]


@pytest.mark.parametrize(("names", "searched"), [([], search.NAMES), (["token", "target"], ("token", "target"))])
def test_search_takes_names_and_without_any_all_of_them(
    monkeypatch: pytest.MonkeyPatch, names: list[str], searched: tuple[str, ...]
) -> None:
    asked: list[str] = []

    def found(name: str, _seconds: int) -> bool:
        asked.append(name)
        return name == "token"

    monkeypatch.setattr(search, "_run", found)
    assert search.main(["--seconds", "1", *names]) == 1
    assert tuple(asked) == searched


def test_search_has_a_name_for_each_harness() -> None:
    assert set(search.NAMES) == HARNESSES.keys()


@pytest.mark.parametrize(
    "raw", [b"/metadata/a\\b", b"/metadata/../x", b"/metadata/a b"], ids=["backslash", "dots", "space"]
)
def test_harness_of_targets_fails_for_a_reader_that_lets_pass(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = tuple(raw.decode().strip("/").split("/"))
    monkeypatch.setattr(harnesses, "read_target", lambda _raw: Target(raw, segments, (), Key(raw.decode())))
    with pytest.raises(AssertionError):
        HARNESSES["target"].run(b"")


def _changed(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Replace pieces of a seed: at a place, so many bytes, by others."""
    for at, size, by in changes:
        place = at % (len(data) + 1)
        data = data[:place] + by + data[place + size :]
    return data


@pytest.mark.parametrize("name", HARNESSES)
def test_every_seed_is_read_rightly(name: str) -> None:
    for seed in HARNESSES[name].seeds:
        HARNESSES[name].run(seed)


@pytest.mark.parametrize("name", HARNESSES)
def test_any_input_is_read_rightly(name: str) -> None:
    harness = HARNESSES[name]
    pieces = st.sampled_from([*harness.seeds, b"%2F", b"%", b"\r\n", b"\0", b"\xff", b'"', b"=", b"&", b";", b","])
    change = st.tuples(st.integers(0, 5_000), st.integers(0, 9), st.one_of(st.binary(max_size=4), pieces))
    inputs = st.builds(_changed, st.sampled_from(harness.seeds), st.lists(change, max_size=6))

    @settings(max_examples=examples(100 if name in _SLOW else 1_000), deadline=None)
    @given(st.one_of(inputs, st.binary(max_size=200)))
    def run(data: bytes) -> None:
        harness.run(data)

    run()
