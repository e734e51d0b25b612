"""The benchmark measures every figure it promises. No test judges speed."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import __main__ as program
from benchmarks import flags
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
    Bound,
    Curve,
    Figure,
    Findings,
    Goal,
    Unit,
)
from benchmarks.loads import generator, wrk
from benchmarks.loads.shapes import DIFFERING, REPEATED, Kind, Shape
from benchmarks.machine import open_files, procfs, programs
from benchmarks.measures.rounds import rotated
from benchmarks.report import goals, picture, svg, tables
from benchmarks.samples import median, most_in_a_second, percentile
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


WRK_OUTPUT = """\
Running 3s test @ http://127.0.0.1:9104/metadata/instance
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   360.45us  571.65us  {longest}   96.36%
    Req/Sec    76.61k    10.63k   91.27k    76.67%
  Latency Distribution
     50%  {half}
     75%  338.00us
     90%  480.00us
     99%  {nearly_all}
  228711 requests in 3.00s, 628.83MB read
{failures}Requests/sec:  76236.19
Transfer/sec:    209.61MB
"""


@pytest.mark.parametrize(
    ("half", "nearly_all", "p50", "p99"),
    [
        ("374.00us", "2.17ms", 0.374, 2.17),
        ("19.65ms", "353.24ms", 19.65, 353.24),
        ("1.15s ", "2.00m ", 1150.0, 120_000.0),
    ],
)
def test_wrk_output_is_read(half: str, nearly_all: str, p50: float, p99: float) -> None:
    sample = wrk.read(WRK_OUTPUT.format(half=half, nearly_all=nearly_all, longest="12.12ms", failures=""))
    assert (sample.count, sample.rate, sample.failed) == (228_711, 76_236.19, 0)
    assert [sample.p50_ms, sample.p99_ms] == pytest.approx([p50, p99])


@pytest.mark.parametrize(
    ("printed", "longest"), [("12.12ms", 12.12), ("  3.01s ", 3010.0), ("987.00us", 0.987), ("  1.00m ", 60_000.0)]
)
def test_longest_response_of_wrk_is_read(printed: str, longest: float) -> None:
    text = WRK_OUTPUT.format(half="1.00ms", nearly_all="2.00ms", longest=printed, failures="")
    assert wrk.read(text).longest_ms == pytest.approx(longest)


@pytest.mark.parametrize("kind", ["repeated", "differing", "entries"])
def test_load_whose_connections_end_says_so_in_each_request(kind: Kind) -> None:
    stays, ends = Shape(kind, 3), Shape(kind, 3, ends=True)
    heads = [set(itertools.islice(generator.requests(1, shape), 9)) for shape in (stays, ends)]
    assert not any(b"Connection:" in head for head in heads[0])
    assert all(head.endswith(b"\r\nConnection: close\r\n\r\n") for head in heads[1])
    assert all(head.count(b"\r\n\r\n") == 1 for head in heads[0] | heads[1])
    without, with_end = (wrk.command("wrk", 1, shape, 32, 1) for shape in (stays, ends))
    assert set(with_end) - set(without) <= {"Connection: close", "close"}
    assert len(with_end) > len(without)


@pytest.mark.parametrize(("seconds", "flag", "early"), [(0.2, "1s", 0.2), (1, "1s", None), (2.5, "3s", 2.5)])
def test_wrk_is_interrupted_where_a_load_takes_no_whole_seconds(seconds: float, flag: str, early: float | None) -> None:
    command = wrk.command("wrk", 1, REPEATED, 32, seconds)
    assert command[command.index("-d") + 1] == flag
    assert wrk.early(seconds) == early


@pytest.mark.parametrize(
    ("failures", "failed"),
    [
        ("  Socket errors: connect 1, read 2, write 3, timeout 4\n", 10),
        ("  Non-2xx or 3xx responses: 16932\n", 16_932),
        ("  Socket errors: connect 0, read 0, write 0, timeout 1\n  Non-2xx or 3xx responses: 5\n", 6),
    ],
)
def test_wrk_failures_are_counted(failures: str, failed: int) -> None:
    text = WRK_OUTPUT.format(half="1.00ms", nearly_all="2.00ms", longest="3.00ms", failures=failures)
    assert wrk.read(text).failed == failed


def test_wrk_output_without_a_rate_is_an_error_that_quotes_it() -> None:
    with pytest.raises(BenchmarkError, match="wrk printed no rate: unable to connect"):
        wrk.read("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_heads_differ_from_request_to_request_and_from_run_to_run() -> None:
    runs = [itertools.islice(generator.requests(1, DIFFERING), 100) for _ in range(2)]
    heads = {head for run_of_it in runs for head in run_of_it}
    assert len(heads) == 200
    assert {head.partition(b"\r\nx-ms-client-request-id: ")[0] for head in heads} == {
        b"GET /metadata/instance?api-version=2021-02-01 HTTP/1.1\r\nHost: 127.0.0.1:1\r\nMetadata: true"
    }


def test_entries_are_requested_in_turn() -> None:
    told = itertools.islice(generator.requests(1, Shape("entries", 3)), 6)
    assert [head.split()[1][-4:] for head in told] == [b"&n=0", b"&n=1", b"&n=2"] * 2


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        ([5.0], 0.99, 5.0),
        ([1.0, math.inf], 1.0, math.inf),
    ],
)
def test_percentile_is_one_of_the_samples(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_median_is_the_middle_sample() -> None:
    assert median([9.0, 1.0, 2.0]) == 2.0


@pytest.mark.parametrize(
    ("number", "order"), [(0, ["a", "b", "c"]), (1, ["b", "c", "a"]), (2, ["c", "a", "b"]), (3, ["a", "b", "c"])]
)
def test_each_round_begins_with_another_server(number: int, order: list[str]) -> None:
    assert rotated(["a", "b", "c"], number) == order


@pytest.mark.parametrize(
    ("moments", "most"),
    [([], 0), ([0.0], 1), ([0.0, 0.5, 1.0], 2), ([0.0, 0.999, 1.0, 1.5, 1.9], 4), ([0.0, 5.0, 5.0, 5.0], 3)],
)
def test_most_in_any_second_finds_the_fullest_second(moments: list[float], most: int) -> None:
    assert most_in_a_second(moments) == most


@pytest.mark.parametrize(
    ("unit", "measured", "server", "ratio"),
    [
        ("/s", {OURS: 50.0, NGINX: 100.0}, NGINX, 0.5),
        ("ms", {OURS: 3.0, NGINX: 2.0}, NGINX, 1.5),
        ("/s", {OURS: 50.0, NGINX: 0.0}, NGINX, None),
        ("/s", {OURS: 50.0}, NGINX, None),
        ("/s", {NGINX: 100.0}, NGINX, None),
        ("/s", {OURS: 50.0}, OURS, None),
        ("ms", {OURS: 50.0, DIRECT: 20.0}, DIRECT, None),
        ("requests", {OURS: 40.0, NGINX: 80.0}, NGINX, None),
    ],
)
def test_ratio_is_ours_divided_by_the_peers(
    unit: Unit, measured: dict[str, float], server: str, ratio: float | None
) -> None:
    assert Figure(name="any", what="any", unit=unit, measured=measured).ratio(server) == ratio


@pytest.mark.parametrize(
    ("bound", "measured", "missed"),
    [
        ("under", 0.9, False),
        ("under", 1.0, True),
        ("at most", 1.0, False),
        ("at most", 1.1, True),
        ("at least", 1.0, False),
        ("at least", 0.9, True),
    ],
)
def test_goal_is_missed_or_reached(bound: Bound, measured: float, missed: bool) -> None:
    assert Goal(what="any", measured=measured, unit="x", bound=bound, goal=1.0).missed is missed


def some_findings(servers: Mapping[str, float]) -> Findings:
    """Return findings of some parts; each server has the rate given beside its name."""
    figures = [
        Figure(name="hits_per_second", what="hits", unit="/s", measured=servers, note="A note."),
        Figure(name="differing_per_second", what="others", unit="/s", measured=servers),
        Figure(name="memory_at_rest_mib", what="memory", unit="MiB", measured={OURS: 41.0}),
        Figure(name="cold_reached_requests", what="reached", unit="requests", measured={OURS: 40, DIRECT: 6895}),
        Figure(name="cold_refused_requests", what="refused", unit="requests", measured={OURS: 0, DIRECT: 6860}),
        Figure(name="cold_last_s", what="last", unit="s", measured={OURS: 7.3, DIRECT: 63.0}),
        Figure(name="cold_gave_up_clients", what="gave up", unit="clients", measured={OURS: 0, DIRECT: 965}),
    ]
    rate = {name: [value, value / 2, value / 4] for name, value in servers.items()}
    p99 = {name: [0.1, 1.0, 400.0] for name in servers}
    curve = Curve(
        name="entries",
        what="entries",
        along="entries",
        points=(1, 10, 10_000),
        rate=rate,
        p99_ms=p99,
        longest_ms=p99,
        processor_ms=p99,
    )
    return Findings(figures=figures, curves=[curve], left_out={VARNISH: "varnishd is not installed"})


def test_goals_are_listed_only_if_measured() -> None:
    found = goals.reached(some_findings({OURS: 120_000.0, NGINX: 100_000.0}))
    told = {(goal.what, goal.bound, goal.goal): (round(goal.measured, 2), goal.missed) for goal in found}
    assert told == {
        ("hits, beside nginx", "at least", 1.25): (1.2, True),
        ("others, beside nginx", "at least", 1.0): (1.2, False),
        ("hits", "at least", 15_000): (120_000, False),
        ("memory", "at most", 38.0): (41.0, True),
        ("refused", "at most", 0): (0, False),
        ("gave up", "at most", 0): (0, False),
        ("hits with up to 10,000 entries, the lowest rate beside that with one", "at least", 0.8): (0.25, True),
    }
    assert goals.reached(Findings()) == []


def test_goals_of_a_crowd_compare_its_slowest_responses() -> None:
    times = {OURS: [1.0, 30.0, 90.0], NGINX: [2.0, 20.0, 30.0]}
    curve = Curve(
        name="connections",
        what="any",
        along="connections",
        points=(500, 1000, 4000),
        rate=times,
        p99_ms=times,
        longest_ms={OURS: [9999.0, 299.0, 300.0], NGINX: [1.0, 1.0, 1.0]},
        processor_ms={},
    )
    found = goals.reached(Findings(curves=[curve]))
    assert [(goal.what, goal.measured, goal.missed) for goal in found] == [
        ("1,000 connections that begin at once: 99 of 100 within, beside nginx", 1.5, False),
        ("1,000 connections that begin at once: the longest", 299.0, False),
        ("4,000 connections that begin at once: 99 of 100 within, beside nginx", 3.0, True),
        ("4,000 connections that begin at once: the longest", 300.0, True),
    ]
    alone = replace(curve, p99_ms={OURS: times[OURS]})
    assert [goal.unit for goal in goals.reached(Findings(curves=[alone]))] == ["ms", "ms"]


def test_tables_show_ratios_losses_and_omitted_servers() -> None:
    findings = some_findings({OURS: 50_000.0, NGINX: 100_000.0})
    findings.goals = goals.reached(findings)
    for written in (tables.text({"cpu": "any"}, findings), tables.markdown({"cpu": "any"}, findings)):
        assert "100,000 (0.50)" in written
        assert re.search(r"hits, beside nginx +(\| )?0.50 x +(\| )?at least 1.25 x +(\| )?missed", written)
        assert re.search(r"10,000 +(\| )?12,500 \(400.00\)", written)
        assert "Left out: Varnish: varnishd is not installed." in written
        assert "hits: A note." in written
    assert json.loads(json.dumps(tables.document({}, findings, 1.0)))["goals"][0]["missed"] is True


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(0.0, [0.0, 1.0]), (4.0, [0, 1, 2, 3, 4]), (190_000.0, [0, 50_000, 100_000, 150_000, 200_000]), (0.9, None)],
)
def test_ticks_are_round_and_reach_the_highest(highest: float, expected: list[float] | None) -> None:
    found = svg.ticks(highest)
    assert expected is None or found == expected
    assert found[0] == 0
    assert found[-1] >= highest
    assert 2 <= len(found) <= 7


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [(0.13, 467.0, [0.1, 1, 10, 100, 1000]), (1.0, 1.0, [1, 10]), (0.1, 100.0, [0.1, 1, 10, 100])],
)
def test_decades_enclose_the_values(lowest: float, highest: float, expected: list[float]) -> None:
    assert svg.decades(lowest, highest) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scale", "value", "place"),
    [
        (svg.Scale(0, 10, 100, 200), 5, 150),
        (svg.Scale(0, 10, 200, 100), 2.5, 175),
        (svg.Scale(1, 100, 0, 10, logarithmic=True), 10, 5),
        (svg.Scale(0, 10, 100, 200), 11, 200),
        (svg.Scale(3, 3, 100, 200), 3, 150),
    ],
)
def test_scale_maps_values_to_positions(scale: svg.Scale, value: float, place: float) -> None:
    assert scale(value) == pytest.approx(place)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (150_000.0, "150k"), (2500.0, "2.5k"), (0.1, "0.1"), (10.0, "10")]
)
def test_values_are_short_at_an_axis(value: float, text: str) -> None:
    assert svg.short(value) == text


@pytest.mark.parametrize(
    "findings",
    [
        Findings(),
        some_findings({OURS: 120_000.0}),
        some_findings({OURS: 1.0, NGINX: 200_000.0, VARNISH: 90.0, BARE: 1.0}),
    ],
)
def test_picture_contains_all_its_parts(findings: Findings) -> None:
    root = ET.fromstring(picture.draw({"cpu": "a <cpu> & more"}, findings))
    wide, high = (float(root.attrib[name]) for name in ("width", "height"))
    for element in root.iter():
        x, y = (float(element.attrib.get(name, 0)) for name in ("x", "y"))
        right = x + float(element.attrib.get("width", 0)) if element is not root else 0
        if element.tag == f"{SVG}text":
            long = svg.width(element.text or "", float(element.attrib["font-size"]))
            shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.attrib.get("text-anchor", "start")]
            x -= shift * long
            right = x + long
        assert 0 <= x <= right <= wide
        assert 0 <= y <= high
        for point in element.attrib.get("points", "").split():
            across, down = map(float, point.split(","))
            assert 0 <= across <= wide
            assert 0 <= down <= high


def test_programs_are_found_in_the_sbin_beside_a_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bin", "sbin", "other"):
        (tmp_path / folder).mkdir()
    program = tmp_path / "sbin" / "nginx"
    program.write_text("#!/bin/sh\necho 'nginx version: nginx/9.8.7' >&2\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert programs.find("nginx") == str(program)
    assert programs.version(str(program), "-v") == "9.8.7"
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert programs.find("nginx") is None
    assert programs.version("nginx", "-v") == "of no known version"


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_peers_files_are_all_in_its_folder(peer: peers.Peer, paced: bool, tmp_path: Path) -> None:
    setup = peers.Setup(tmp_path, 1, 2, 60, paced, 16, 20_000)
    command = peer.command(setup, peer.program)
    written = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
    assert len(written) == 1
    named = re.findall(r"(?<![\w.:/])/[\w./-]+", " ".join([*command, written[0]]))
    assert all(path == "/" or path.startswith(str(tmp_path)) for path in named), named
    assert "60" in written[0]
    assert ("limit_req" in written[0]) is (paced and peer.name == NGINX)


def test_flags_refuse_what_cannot_be_written(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    assert flags.file(str(taken)) == taken
    assert flags.folder(str(tmp_path / "new")).is_dir()
    for read, text in [(flags.file, tmp_path), (flags.file, tmp_path / "none" / "x"), (flags.folder, taken / "x")]:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(str(text)))):
            read(str(text))


FOLDERS = ("machine", "loads", "servers", "measures", "report")
SHARED = {"effort", "figures", "flags", "samples", "targets"}
"""The modules that stand beside the folders. They import no folder, so every folder may import them."""
MAY_IMPORT = {
    "": SHARED,
    **{folder: {*SHARED, *FOLDERS[: number + 1]} for number, folder in enumerate(FOLDERS)},
    "scaling": {*SHARED, "scaling"},
    "soak": {*SHARED, *FOLDERS[:2], "soak"},
}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.name)
def test_folder_imports_only_folders_above_it(path: Path) -> None:
    """As the table of `benchmarks/README.md` says. The command of the benchmarks imports all of them."""
    text = path.read_text(encoding="utf-8")
    folder = path.parent.name if path.parent.parent.name == "benchmarks" else ""
    named = {*re.findall(r"^from benchmarks\.(\w+)", text, re.MULTILINE)}
    for names in re.findall(r"^from benchmarks import ([\w, ]+)", text, re.MULTILINE):
        named.update(names.split(", "))
    if folder or path.stem in SHARED:
        assert named <= MAY_IMPORT[folder]
