"""Derived entries over real sockets: a derived answer is what IMDS answers for the part's own path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, run_in_thread
from tests.kit import get, running_proxy
from tests.targets import INSTANCE

pytestmark = [pytest.mark.any_python, pytest.mark.process]


def parts(tree: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Return the path of every string leaf (true) and of every filled container (false) below the top."""
    if isinstance(tree, str):
        yield path, True
        return
    if path and tree:
        yield path, False
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, child in children:
        yield from parts(child, f"{path}/{name}")


def test_every_part_is_derived_from_the_whole_as_imds_would_answer(tmp_path: Path) -> None:
    with (
        run_in_thread(Emulator(rate=0)) as imds,
        running_proxy(tmp_path, upstream=imds.url, derive="true") as proxy,
    ):
        whole = json.loads(get(proxy.port, INSTANCE).body)
        before = len(imds.emulator.arrivals)
        found = list(parts(whole))
        assert len(found) > 80
        for path, leaf in found:
            asked = INSTANCE.replace("?", f"{path}?") + ("&format=text" if leaf else "")
            derived = get(proxy.port, asked)
            assert "; detail=derived" in derived.headers["cache-status"], asked
            own = get(imds.port, asked)
            for name in ("content-type", "server"):
                assert derived.headers[name] == own.headers[name]
            assert (derived.status, derived.body) == (own.status, own.body), asked
        assert len(imds.emulator.arrivals) == before + len(found), "only those that this test sent itself"


def test_nothing_is_derived_by_default(tmp_path: Path) -> None:
    with run_in_thread(Emulator(rate=0)) as imds, running_proxy(tmp_path, upstream=imds.url) as proxy:
        get(proxy.port, INSTANCE)
        leaf = get(proxy.port, INSTANCE.replace("?", "/compute/vmId?") + "&format=text")
        assert leaf.headers["cache-status"].startswith("imdsproxy; fwd=uri-miss")
