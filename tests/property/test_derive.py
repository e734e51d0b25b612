"""A derived part is, byte for byte, what IMDS answers for the part's own path, or there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.cache.derive import derive, wholes
from imdsproxy.cache.freshness import make_entry
from imdsproxy.emulator import answers, documents
from imdsproxy.emulator import messages as wire
from imdsproxy.emulator.machine import Machine
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Response, Target
from imdsproxy.protocol.target import read_target

LIFETIMES = Lifetimes(fresh=60)
NAMES = st.text(st.sampled_from("abcXYZ019-_~"), min_size=1, max_size=5)
LEAVES = st.one_of(st.text(max_size=8), st.text(st.sampled_from(' "\\/\t\n&<é漢😀'), max_size=5))
TREES = st.recursive(
    LEAVES,  # in this document every primitive is a string
    lambda child: st.one_of(st.dictionaries(NAMES, child, max_size=4), st.lists(child, max_size=3)),
    max_leaves=20,
)
INSTANCES = st.dictionaries(st.sampled_from(["compute", "network"]), TREES, min_size=1)


def nodes(tree: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return every node of a document and the way to it."""
    yield way, tree
    if isinstance(tree, dict):
        for name, child in tree.items():
            yield from nodes(child, (*way, name))
    if isinstance(tree, list):
        for index, child in enumerate(tree):
            yield from nodes(child, (*way, str(index)))


def ask(machine: Machine, way: tuple[str, ...], version: str, form: str) -> Response:
    """Ask the emulator for a path below `/metadata/instance`."""
    query = (("api-version", version), *((("format", form),) if form else ()))
    request = wire.Request("GET", "/".join(("/metadata/instance", *way)), query, (("metadata", "true"),))
    told = answers.answer(machine, request, 0.0)
    return Response(told.status, ((b"content-type", str(told.content_type).encode("ascii")),), told.body)


def cut_out(whole: Response, top: tuple[str, ...], way: tuple[str, ...], version: str, form: str) -> Response | None:
    """Return what the proxy derives for a path from a whole that was fetched from the path `top`."""
    written = "/".join(("/metadata/instance", *way)) + f"?api-version={version}" + (f"&format={form}" if form else "")
    target = read_target(written.encode())
    assert isinstance(target, Target)
    entry = make_entry(whole, LIFETIMES, 0.0, 0.0)
    key = "/".join(("/metadata/instance", *top)) + f"?api-version={version}"
    found = dict(wholes(target)).get(key)  # type: ignore[call-overload]  # a key by its text
    if entry is None or found is None:
        return None
    part = derive(entry, found, target, LIFETIMES, 1.0)
    return None if part is None else part.response


def assert_alike(machine: Machine, version: str, *, complete: bool) -> int:
    """Compare the derived answer of every path, from every whole above it, with the emulator's. Return their number."""
    document = documents.at_version(machine.instance, version)
    compared = 0
    for way, node in nodes(document):
        for form in ("", "json", "text"):
            own = ask(machine, way, version, form)
            for length in range(len(way) + 1):
                top = way[:length]
                derived = cut_out(ask(machine, top, version, ""), top, way, version, form)
                if derived is not None:
                    assert derived == own, (way, form, top)
                    compared += 1
                elif complete and top != way:
                    # A leaf as text and a filled subtree as JSON are certain, so they must be there.
                    assert not (isinstance(node, str) if form == "text" else isinstance(node, dict | list) and node)
    return compared


@pytest.mark.parametrize("version", ["2017-03-01", "2018-02-01", "2019-06-01", "2021-02-01", "2025-04-07"])
def test_every_path_of_the_sample_document_is_derived_as_imds_answers(version: str) -> None:
    assert assert_alike(Machine(), version, complete=True) > 40


@given(INSTANCES)
def test_every_path_of_any_document_is_derived_as_imds_answers(instance: dict[str, Any]) -> None:
    assert_alike(Machine(instance=instance), "2021-02-01", complete=False)


@given(INSTANCES, st.lists(NAMES, max_size=4), st.sampled_from(["", "json", "text"]))
def test_any_path_is_derived_as_imds_answers_or_not_at_all(instance: dict[str, Any], way: list[str], form: str) -> None:
    machine = Machine(instance=instance)
    whole = ask(machine, (), "2021-02-01", "")
    derived = cut_out(whole, (), tuple(way), "2021-02-01", form)
    assert derived is None or derived == ask(machine, tuple(way), "2021-02-01", form)
