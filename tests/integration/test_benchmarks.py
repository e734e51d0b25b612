"""The benchmark measures every figure it promises. No test judges speed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import __main__ as program
from benchmarks.effort import QUICK, SMOKE, Effort
from benchmarks.figures import (
    BARE,
    DIRECT,
    HAPROXY,
    NGINX,
    OURS,
    PLAIN,
    VARNISH,
    BenchmarkError,
    Figure,
)
from benchmarks.machine import open_files, procfs
from benchmarks.servers import peers
from benchmarks.servers.bench import Bench
from tests.kit import ROOT, wait_until
from tests.size import size

ALL = {OURS, NGINX, HAPROXY, VARNISH, BARE, PLAIN}
CACHES = {OURS, NGINX, HAPROXY, VARNISH}
INSTALLED = {peer.name for peer in peers.PEERS if peer.path() is not None}
HAS_PROC = Path("/proc/self/status").exists()
# The servers of each figure; those of the second table need /proc.
FIGURES = {
    **{f"{kind}_{what}": ALL for kind in ("hits", "differing") for what in ("per_second", "p50_ms", "p99_ms")},
    **{
        f"{kind}_{what}": CACHES | {BARE}
        for kind in ("ending", "ending_differing")
        for what in ("per_second", "p50_ms", "p99_ms")
    },
    "hit_p50_ms": ALL | {DIRECT},
    "hit_p99_ms": ALL | {DIRECT},
    "miss_adds_ms": CACHES | {DIRECT},
    "start_s": ALL,
    "lookup_tcp_ms": {OURS},
    "lookup_unix_ms": {OURS},
    "storm_one_target_requests": CACHES | {DIRECT},
    "storm_distinct_s": {OURS},
    "storm_most_in_a_second_requests": {OURS},
    **{f"cold_{what}_requests": CACHES | {DIRECT} for what in ("reached", "refused", "most_in_a_second")},
    **{f"cold_{what}_clients": CACHES | {DIRECT} for what in ("library", "gave_up")},
    "cold_median_s": {OURS},
    "cold_last_s": CACHES | {DIRECT},
}
OF_PROC = {
    **{f"{kind}_processor_ms": ALL for kind in ("hits", "differing")},
    **{f"{kind}_processor_ms": CACHES | {BARE} for kind in ("ending", "ending_differing")},
    **{f"memory_{when}_mib": ALL for when in ("at_rest", "at_rest_pss", "after_hits", "after_differing")},
    "memory_after_mixed_mib": {OURS},
}
MAY_BE_NOTHING = {"miss_adds_ms", "cold_refused_requests", "cold_library_clients", "cold_gave_up_clients"}
KINDS = ("hits", "differing", "ending", "ending_differing")
MAY_BE_NOTHING |= {f"{kind}_processor_ms" for kind in KINDS}  # the kernel counts in hundredths of a second
SVG = "{http://www.w3.org/2000/svg}"

EFFORT = size(short="--smoke", full="--quick")
COLD_CLIENTS = size(short=SMOKE, full=QUICK).cold_clients

pytestmark = pytest.mark.large
process = pytest.mark.process


def environment(**more: str) -> dict[str, str]:
    # The processes are measured, so they must not be traced.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return {**kept, "IMDSPROXY_PORT": "what the caller has set reaches no process", **more}


def run(*flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *flags],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )


def words_of(pid: int) -> str:
    """Return the command line of a process, or nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def naming(text: str) -> list[str]:
    """Return the command line of every process that contains this text."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [words for words in map(words_of, pids) if text in words]


def load_on(pid: int) -> list[str]:
    """Return the command line of the load that a run has started."""
    lines = [words_of(each) for each in procfs.tree(pid)]
    return [words for words in lines if "wrk -t" in words or "benchmarks.loads.generator" in words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """Return the output of one short run, whose results are in the folder."""
    temporary = folder / "temporary"
    temporary.mkdir()
    flags = [EFFORT, "--json", str(folder / "figures.json"), "--results", str(folder / "results")]
    done = run(*flags, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []
    assert naming(str(temporary)) == []
    return done.stdout


@pytest.fixture(scope="module")
def document(folder: Path, printed: str) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return written


@process
def test_every_figure_is_present_and_plausible(document: dict[str, Any]) -> None:
    figures = document["figures"]
    assert figures.keys() == FIGURES.keys() | OF_PROC.keys()
    for name, servers in {**FIGURES, **(OF_PROC if HAS_PROC else {})}.items():
        measured = figures[name]["measured"]
        assert servers - (CACHES - INSTALLED - {OURS}) <= measured.keys(), name
        assert all(math.isfinite(value) for value in measured.values()), name
        assert name in MAY_BE_NOTHING or all(value > 0 for value in measured.values()), name
    for kind in KINDS:
        for server, half in figures[f"{kind}_p50_ms"]["measured"].items():
            assert half <= figures[f"{kind}_p99_ms"]["measured"][server]


@process
def test_every_curve_has_a_value_at_each_point(document: dict[str, Any]) -> None:
    assert document["curves"].keys() == {"connections", "entries"}
    for curve in document["curves"].values():
        assert curve["points"] == sorted(curve["points"])
        assert curve["rate"].keys() == curve["p99_ms"].keys() == curve["longest_ms"].keys()
        assert curve["rate"].keys() >= {OURS, BARE, *INSTALLED}
        if HAS_PROC:
            assert curve["processor_ms"].keys() == curve["rate"].keys()
        for line in (*curve["rate"].values(), *curve["p99_ms"].values(), *curve["longest_ms"].values()):
            assert len(line) == len(curve["points"])
            assert all(value > 0 for value in line)
        for server, line in curve["p99_ms"].items():
            # wrk rounds what it prints to five digits.
            assert all(p99 <= 1.001 * most for p99, most in zip(line, curve["longest_ms"][server], strict=True))


@process
def test_installed_peers_are_measured(document: dict[str, Any]) -> None:
    if os.environ.get("REQUIRE_SYSTEM_TESTS"):
        assert {NGINX, HAPROXY, VARNISH} == INSTALLED
    assert document["left_out"].keys() == {NGINX, HAPROXY, VARNISH} - INSTALLED
    for name in INSTALLED:
        assert re.search(rf"{name} \d+\.\d+\.\d+", document["machine"]["beside"])


@process
def test_storms_keep_the_budget(document: dict[str, Any]) -> None:
    measured = {name: figure["measured"] for name, figure in document["figures"].items()}
    assert measured["storm_one_target_requests"][OURS] == 1
    assert 1 <= measured["storm_most_in_a_second_requests"][OURS] <= 5
    assert 1 <= measured["cold_most_in_a_second_requests"][OURS] <= 5
    assert measured["storm_distinct_s"][OURS] >= 2
    assert measured["cold_refused_requests"][OURS] == 0
    assert measured["cold_gave_up_clients"][OURS] == 0
    # Without a proxy each client asks at least once.
    assert measured["cold_reached_requests"][DIRECT] >= COLD_CLIENTS
    assert measured["cold_gave_up_clients"][DIRECT] > 0


@process
def test_table_has_a_line_for_each_figure_and_names_the_machine(printed: str, document: dict[str, Any]) -> None:
    for figure in document["figures"].values():
        assert any(line.startswith(figure["what"] + " ") for line in printed.splitlines()), figure["what"]
    for name, text in document["machine"].items():
        assert f"{text}\n" in printed, name
    assert all(goal["what"] in printed for goal in document["goals"])


@process
def test_results_contain_no_path_or_host_name(folder: Path, printed: str, document: dict[str, Any]) -> None:
    results = folder / "results"
    assert {path.name for path in results.iterdir()} == {"newest.json", "newest.md", "newest.svg"}
    texts = {path.suffix: path.read_text(encoding="utf-8") for path in results.iterdir()}
    assert json.loads(texts[".json"]) == document
    assert "![" in texts[".md"]
    root = ET.fromstring(texts[".svg"])
    assert root.tag == f"{SVG}svg"
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {OURS, BARE, *INSTALLED} <= words
    for text in texts.values():
        assert str(ROOT) not in text
        assert str(folder) not in text


@process
def test_missing_or_failing_peer_is_omitted_with_a_note(tmp_path: Path) -> None:
    broken = tmp_path / "nginx"
    broken.write_text('#!/bin/sh\necho "no room here" >&2\nexit 1\n', encoding="utf-8")
    broken.chmod(0o755)
    written = tmp_path / "figures.json"
    done = run(EFFORT, "--only", "starts,hits,ending", "--json", str(written), PATH=f"{tmp_path}:/bin/nowhere")
    assert done.returncode == 0, done.stderr
    document = json.loads(written.read_text(encoding="utf-8"))
    assert document["left_out"] == {
        NGINX: "nginx did not start: no room here",
        HAPROXY: "haproxy is not installed",
        VARNISH: "varnishd is not installed",
    }
    for name, why in document["left_out"].items():
        assert f"without {name}: {why}\n" in done.stderr
        assert f"Left out: {name}: {why}.\n" in done.stdout
    for figure in ("hits_per_second", "differing_per_second", "start_s"):
        assert document["figures"][figure]["measured"].keys() == {OURS, BARE, PLAIN}
    for figure in ("ending_per_second", "ending_differing_per_second"):
        assert document["figures"][figure]["measured"].keys() == {OURS, BARE}
    assert "wrk is not installed" in document["figures"]["hits_per_second"]["note"]
    assert document["machine"]["command"] == f"python -m benchmarks {EFFORT} --only hits,ending,starts"


@process
@pytest.mark.skipif(not HAS_PROC, reason="remaining processes are looked up in /proc")
def test_ended_run_leaves_no_process_or_file(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--only", "hits"],
        cwd=ROOT,
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as running:
        # Once there is load, every server runs.
        wait_until(lambda: load_on(running.pid) or running.poll() is not None, 60)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.endswith("benchmarks: interrupted; every process that was started is ended\n")
    assert naming(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


@process
def test_failing_part_does_not_lose_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_bench: Bench, _effort: Effort) -> list[Figure]:
        raise BenchmarkError("nothing was answered")

    def works(_bench: Bench, _effort: Effort) -> list[Figure]:
        return [Figure(name="any", what="the other", unit="s", measured={OURS: 2.0})]

    monkeypatch.setattr(program, "_PARTS", {"one": ("the one", fails), "two": ("the two", works)})
    monkeypatch.setattr(open_files, "raise_limit", lambda: 1024)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert program.main(["--quick"]) == 1
    printed = capsys.readouterr()
    assert "the other [s]  2.00\n" in printed.out
    assert "Left out: the one: nothing was answered.\n" in printed.out
    assert "benchmarks: the one: nothing was answered\n" in printed.err


@process
@pytest.mark.parametrize(
    "flags",
    [
        ["--fast"],
        ["--quick", "--smoke"],
        ["--json"],
        ["--json", "no-such-folder/figures.json"],
        ["--results", "no-such-folder/results"],
        ["--results", "Makefile"],
        ["--only", "hits,nothing"],
        ["--only", ""],
    ],
)
def test_wrong_flags_end_with_status_2(flags: list[str]) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert "usage: python -m benchmarks" in done.stderr
