"""The benchmark measures every figure it promises. What the figures say about speed is no test's business."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit import ROOT

pytestmark = pytest.mark.process

FROM_PROC = {"memory_at_start_mib", "memory_after_requests_mib", "hits_per_processor_second"}
TIMES = {"hit_p50_ms", "hit_p99_ms", "start_s", "storm_distinct_s"}
COUNTS = {"storm_one_target_requests", "storm_most_in_a_second_requests"}
EVERY = FROM_PROC | TIMES | COUNTS | {"hits_per_second", "miss_adds_ms"}


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    # Its processes are to be measured, not traced.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *flags],
        cwd=ROOT,
        env={**environment, "IMDSPROXY_PORT": "what the caller has set reaches no process"},
        capture_output=True,
        encoding="utf-8",
        timeout=180,
        check=False,
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What one quick run printed, and the document it wrote."""
    path = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    done = run("--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_every_figure_is_there_and_plausible(output: tuple[str, dict[str, Any]]) -> None:
    _, document = output
    figures = document["figures"]
    assert figures.keys() == EVERY
    told = {name for name in EVERY if name not in FROM_PROC or Path("/proc/self/status").exists()}
    for name in told - {"miss_adds_ms"}:
        assert figures[name]["measured"] > 0, name
        assert math.isfinite(figures[name]["measured"]), name
    # A difference of two medians; on a machine that does much else it may be anything.
    assert math.isfinite(figures["miss_adds_ms"]["measured"])
    for name in EVERY - COUNTS - FROM_PROC:
        assert figures[name]["beside"] > 0, name
    assert figures["hit_p50_ms"]["measured"] <= figures["hit_p99_ms"]["measured"]


def test_a_storm_for_one_target_makes_one_request(output: tuple[str, dict[str, Any]]) -> None:
    _, document = output
    assert document["figures"]["storm_one_target_requests"]["measured"] == 1


def test_a_storm_for_distinct_targets_keeps_the_budget(output: tuple[str, dict[str, Any]]) -> None:
    _, document = output
    assert 1 <= document["figures"]["storm_most_in_a_second_requests"]["measured"] <= 5
    distinct = document["figures"]["storm_distinct_s"]
    assert distinct["measured"] >= distinct["beside"]


def test_the_table_has_a_line_for_each_figure_and_says_what_it_was_measured_on(
    output: tuple[str, dict[str, Any]],
) -> None:
    printed, document = output
    for figure in document["figures"].values():
        assert any(line.startswith(figure["what"] + "  ") for line in printed.splitlines()), figure["what"]
    for name, text in document["machine"].items():
        assert f"{text}\n" in printed, name


@pytest.mark.parametrize("flags", [["--fast"], ["--json"], ["--json", "no-such-folder/figures.json"]])
def test_wrong_flags_end_with_status_2(flags: list[str]) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert "usage: python -m benchmarks" in done.stderr
