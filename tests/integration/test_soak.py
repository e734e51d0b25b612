"""The soak: the rules of its verdict as tables, its plan, and a short run of the real thing."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak import clients, floods, outcomes, sdk
from benchmarks.soak.driver import faults_in
from benchmarks.soak.outcomes import CLOSED, EXPECTED, TIMEOUT, Ledger, is_expected
from benchmarks.soak.pace import adjusted
from benchmarks.soak.plan import FAULTS, FLOODS, LONGEST_PHASE, Phase, phases
from benchmarks.soak.verdict import (
    MIB,
    Check,
    Sample,
    answered,
    descriptors,
    errors,
    growth,
    log,
    passed,
    peak,
    slope,
    threads,
    worst_second,
)
from imdsproxy.emulator import messages
from imdsproxy.emulator.faults import Fault
from imdsproxy.protocol.messages import Failure, FailureKind
from tests.kit import ROOT, wait_until
from tests.size import size


def sample(at: float, resident: float = 40.0, *, files: int = 20, running: int = 3, rest: bool = True) -> Sample:
    return Sample(at, int(resident * MIB), 0, files, running, rest=rest)


def rests(resident: Iterator[float], minutes: int = 60) -> list[Sample]:
    """Return samples of a run: a rest of four samples every two minutes, and a flood with 20 MiB more in between."""
    found = []
    for start in range(0, minutes * 60, 120):
        level = next(resident)
        found += [sample(start + second, level) for second in range(4)]
        found.append(sample(start + 60, level + 20, rest=False))
    return found


def _noise(step: float) -> Iterator[float]:
    """Yield levels that grow by `step` each, with noise of 3 MiB; now and then a rest is 30 MiB higher."""
    chance = random.Random(7)
    for number in itertools.count():
        yield 40 + step * number + chance.uniform(-1.5, 1.5) + (30 if number % 9 == 5 else 0)


@pytest.mark.parametrize(
    ("step", "leak"), [(0.0, False), (-0.5, False), (0.05, False), (0.2, True), (0.5, True), (5.0, True)]
)
def test_growth_finds_a_leak_in_noise_and_no_leak_in_noise_alone(step: float, leak: bool) -> None:
    """Thirty steps are an hour."""
    check = growth(rests(_noise(step)))
    assert check.passed is not leak, check


def test_growth_of_the_first_half_is_the_warm_up() -> None:
    levels = [40 + min(number, 14) for number in range(30)]
    assert growth(rests(iter(map(float, levels)))).passed is True


def test_growth_of_floods_alone_is_no_leak() -> None:
    samples = [
        each if each.rest else sample(each.at, 40 + each.at / 60, rest=False) for each in rests(itertools.repeat(40.0))
    ]
    assert growth(samples).passed is True


@pytest.mark.parametrize("minutes", [0, 2, 8])
def test_growth_is_not_judged_within_minutes(minutes: int) -> None:
    check = growth(rests(map(float, itertools.count(40)), minutes))
    assert check.passed is None
    assert "not judged" in check.why


@pytest.mark.parametrize(
    ("points", "expected"),
    [([], 0.0), ([(1.0, 5.0)], 0.0), ([(0.0, 1.0), (2.0, 5.0)], 2.0), ([(0.0, 0.0), (1.0, 1.0), (2.0, 90.0)], 45.0)],
)
def test_slope_is_the_median_of_all_pairs(points: list[tuple[float, float]], expected: float) -> None:
    assert slope(points) == expected


@pytest.mark.parametrize(
    ("arrivals", "passes"),
    [
        ([], True),
        ([0.0, 0.1, 0.2, 0.3, 0.4], True),
        ([0.0, 0.1, 0.2, 0.3, 0.4, 0.999], False),
        ([0.0, 0.1, 0.2, 0.3, 0.4, 1.0], True),
        ([5.0, 4.9, 4.8, 4.7, 4.6, 4.5], False),
    ],
)
def test_six_requests_within_a_second_are_found(arrivals: list[float], passes: bool) -> None:
    assert worst_second(arrivals).passed is passes


@pytest.mark.parametrize(
    ("check", "passes"),
    [
        (peak(99, 100), True),
        (peak(100, 100), False),
        (descriptors(sample(0, files=16), sample(9, files=16)), True),
        (descriptors(sample(0, files=16), sample(9, files=15)), True),
        (descriptors(sample(0, files=16), sample(9, files=17)), False),
        (threads([sample(0, running=9, rest=False), sample(1, running=3)], sample(9, running=5)), True),
        (threads([sample(0, running=9, rest=False), sample(1, running=3)], sample(9, running=6)), False),
        (threads([], sample(9, running=6)), True),
        (log([]), True),
        (log(["Traceback (most recent call last):\n"]), False),
    ],
)
def test_figure_is_compared_with_its_limit(check: Check, passes: bool) -> None:
    assert check.passed is passes


@pytest.mark.parametrize(
    ("client", "outcome", "well", "trouble"),
    [
        ("azure-identity", "200", True, True),
        ("azure-identity", "503", False, True),
        ("azure-identity", "404", False, False),
        ("azure-identity", TIMEOUT, False, False),
        ("instance", CLOSED, False, False),
        ("distinct keys", "429", True, True),
        ("distinct keys", "502", False, True),
        ("imdsproxy status", "503", False, False),
        ("slow heads", "408", True, True),
        ("slow heads", "200", False, False),
        ("refused requests", "200", False, False),
    ],
)
def test_outcome_is_expected_only_with_its_cause(client: str, outcome: str, well: bool, trouble: bool) -> None:
    assert is_expected(client, outcome, trouble=False) is well
    assert is_expected(client, outcome, trouble=True) is trouble


def test_unexpected_outcome_fails_the_run_and_is_described_once() -> None:
    ledger = Ledger()
    for detail in ("first", "second"):
        ledger.start("instance")
        ledger.end("instance", "503", trouble=False, detail=detail)
    ledger.end("instance", "503", trouble=True)
    assert errors(ledger) == Check("errors", passed=False, why="2 x instance: 503 (first)")
    assert errors(Ledger()).passed is True
    assert ledger.answered("instance") == 3


@pytest.mark.parametrize(
    ("lost", "used", "why"),
    [
        ({}, {"instance"}, ""),
        ({}, {"instance", "curl"}, "never answered: curl"),
        ({"token": 2}, {"instance"}, "no end: 2 x token"),
    ],
)
def test_client_without_an_answer_fails_the_run(lost: dict[str, int], used: set[str], why: str) -> None:
    ledger = Ledger()
    ledger.end("instance", "200", trouble=False)
    check = answered(ledger, lost, used)
    assert check.passed is not bool(why)
    assert why in check.why


def test_run_passes_if_no_check_failed() -> None:
    checks = [Check("a", passed=True, why=""), Check("b", passed=None, why="")]
    assert passed(checks)
    assert not passed([*checks, Check("c", passed=False, why="")])


def test_plan_repeats_by_its_seed_and_has_every_fault_and_flood() -> None:
    def plan(seed: int) -> list[Phase]:
        return list(itertools.islice(phases(seed, 3600), 100))

    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
    assert {phase.fault for phase in plan(3)} - {None} == set(FAULTS)
    assert {phase.flood for phase in plan(3)} - {None} == set(FLOODS) == set(floods.FLOODS)
    assert all(phase.fault is None is phase.flood for phase in plan(4) if phase.rest)
    assert {phase.seconds for phase in plan(5)} == {LONGEST_PHASE}
    assert math.isclose(sum(phase.seconds for phase in itertools.islice(phases(6, 20), 10)), 20)


def test_every_client_and_flood_has_expected_outcomes() -> None:
    found, left_out = clients.clients()
    assert set(EXPECTED) == {*FLOODS, *found, *left_out}


@pytest.mark.parametrize("fault", [each for faults in FAULTS.values() for each in faults], ids=str)
def test_emulator_knows_each_fault(fault: dict[str, object]) -> None:
    Fault.from_mapping({**fault, "for": 1})


@pytest.mark.parametrize(
    ("pace", "used", "expected"),
    [(1.0, 0.1, 1.0), (1.0, 0.4, 0.5), (0.5, 0.1, 0.625), (0.1, 9.0, 0.05), (0.5, 0, 0.625)],
)
def test_pace_follows_the_processor_time(pace: float, used: float, expected: float) -> None:
    assert adjusted(pace, used) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        ("ManagedIdentityCredential authentication unavailable, no response: Response status: 410 Gone", "410"),
        ("{'error': 'invalid_scope', 'error_description': \"{'statusCode': 503, 'headers': {}}\"}", "503"),
        ("{'error': 'invalid_request', 'error_description': 'Service Unavailable'}", "503"),
        ("{'error': 'upstream_timeout', 'error_description': 'http://127.0.0.1:1 did not answer'}", "504"),
        ("{'error': 'Gone'}", "410"),
        ("{'error': 'upstream_reset', 'error_description': 'the connection closed before its answer ended'}", "502"),
        ("nothing   of\n use", "nothing of use"),
    ],
)
def test_failure_of_a_library_has_its_status_or_its_words(words: str, outcome: str) -> None:
    assert sdk.failure(words) == outcome


@pytest.mark.parametrize("status", sorted(outcomes.IN_TROUBLE))
@pytest.mark.parametrize("identity", [False, True])
def test_every_error_of_imds_is_known_by_its_words(status: str, identity: bool) -> None:
    answer = json.loads(messages.failure(int(status), identity).body)
    assert sdk.failure(str(answer)) == status


@pytest.mark.parametrize("kind", FailureKind)
def test_every_error_of_the_proxy_is_known_by_its_name(kind: FailureKind) -> None:
    refusal = Failure(kind, "127.0.0.1 did something").refusal(1)
    assert sdk.failure(str({"error": refusal.error, "error_description": refusal.description})) == str(refusal.status)


def test_traceback_in_a_log_is_found(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("info ready\nTraceback (most recent call last):\n  File\nTask exception was never retrieved\n")
    assert len(faults_in(path)) == 2


# The rules above are tables; from here on it is the real thing.


def _soak(folder: Path, minutes: float) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.soak",
        "--minutes",
        str(minutes),
        "--seed",
        "1",
        "--folder",
        str(folder),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.process
@pytest.mark.large
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_short_soak_passes_and_leaves_no_process(tmp_path: Path) -> None:
    process = _soak(tmp_path, size(short=0.2, full=3))
    try:
        out, _ = process.communicate(timeout=size(short=150, full=400))
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "seed 1" in out
    assert re.search(r"^passed  requests at IMDS in a second: at most [1-5] of \d+", out, re.MULTILINE), out
    assert re.search(r"^passed  errors: none unexpected in \d{2,} requests", out, re.MULTILINE), out
    assert re.search(r"azure-identity +\d+ x 200", out), out
    assert (tmp_path / "report.txt").read_text(encoding="utf-8").endswith("passed\n")
    assert not _mentioning(str(tmp_path))


@pytest.mark.process
@pytest.mark.large
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_soak_ends_at_ctrl_c_with_the_verdict_so_far(tmp_path: Path) -> None:
    process = _soak(tmp_path, 60)
    try:
        wait_until((tmp_path / "samples.tsv").exists, 60)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "ended early by a signal" in out
    assert re.search(r"^passed  descriptors: (\d+) before, \1 after", out, re.MULTILINE), out
    assert not _mentioning(str(tmp_path))


def _mentioning(words: str) -> list[str]:
    """Return the command lines and environments of running processes that have these words."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            for name in ("cmdline", "environ"):
                try:
                    text = (folder / name).read_bytes()
                except OSError:
                    continue
                if words.encode() in text:
                    found.append(text.decode("utf-8", "replace"))
    return found
