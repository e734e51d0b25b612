"""How the tests run: skips in CI, distribution over processes, sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import ROOT
from tests.skips import EXPECTED, complaint, strict
from tests.spread import places, scope

SUITE = """
import pytest

@pytest.fixture
def lacking():
    pytest.skip("no such tool")

def test_that_runs():
    pass

def test_that_skips_itself():
    pytest.skip("no such tool")

def test_whose_fixture_skips(lacking):
    pass

@pytest.mark.skipif(True, reason="no such tool")
def test_that_is_marked():
    pass

def test_that_may_skip():
    pytest.skip("only root may make network namespaces")

@pytest.mark.xfail(reason="known", strict=True)
def test_that_is_expected_to_fail():
    raise AssertionError

@pytest.mark.xfail(reason="known", run=False)
def test_that_is_not_run():
    pass
"""
MODULE = 'import pytest\npytest.importorskip("no_such_module")\n'


def outcome(folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_suite.py").write_text(SUITE, encoding="utf-8")
    (folder / "test_module.py").write_text(MODULE, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTEST_ADDOPTS"}}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", "-p", "no:cacheprovider", f"--rootdir={folder}"],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **more},
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="a skip is a failure on Linux only")
def test_in_ci_an_unexpected_skip_fails_wherever_it_comes_from(tmp_path: Path) -> None:
    # A module that cannot be imported interrupts the session, so that is seen in a run of its own.
    interrupted = outcome(tmp_path, CI="true")
    assert interrupted.returncode == 2, interrupted.stdout
    assert "skipped in CI: could not import 'no_such_module'" in interrupted.stdout
    done = outcome(tmp_path, CI="true", PYTEST_ADDOPTS="--ignore=test_module.py")
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed, 1 skipped, 2 xfailed, 2 errors" in done.stdout
    assert done.stdout.count(": skipped in CI: no such tool\nInstall") >= 3


def test_elsewhere_skips_are_skips(tmp_path: Path) -> None:
    done = outcome(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 5 skipped, 2 xfailed" in done.stdout


@pytest.mark.parametrize(
    ("environment", "platform", "fails"),
    [
        ({"CI": "true"}, "linux", True),
        ({"CI": ""}, "linux", False),
        ({}, "linux", False),
        ({"CI": "true"}, "win32", False),
    ],
)
def test_skips_are_judged_in_ci_on_linux(environment: dict[str, str], platform: str, fails: bool) -> None:
    assert strict(environment, platform) is fails


def test_each_expected_skip_has_its_reason() -> None:
    for start, why in EXPECTED.items():
        assert complaint(f"{start} here") == ""
        assert why
    assert "not installed: nft" in complaint("not installed: nft")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tests/unit/test_a.py::test_one", "tests/unit/test_a.py"),
        ("tests/unit/test_a.py::TestThis::test_one[a-b]", "tests/unit/test_a.py"),
        ("tests/unit/test_a.py::test_one[a@b]", "tests/unit/test_a.py"),
        ("tests/unit/test_a.py::test_one[a@b]@images", "images"),
        ("tests/unit/test_a.py::test_one@images", "images"),
    ],
)
def test_tests_of_a_file_or_of_a_group_run_in_one_process(name: str, expected: str) -> None:
    assert scope(name) == expected


@pytest.mark.xdist_group("one test")
def test_mark_of_a_group_has_an_effect(request: pytest.FixtureRequest) -> None:
    in_groups = request.config.getoption("loadgroup", default=False)
    assert scope(request.node.nodeid) == ("one test" if in_groups else "tests/unit/test_running.py")


def test_files_that_compute_stand_evenly_among_those_that_wait() -> None:
    ranks = {"process": 4, "a": 5, "large": 0, "b": 5, "c": 5, "d": 5, "system": 1, "windows": 2}
    place = places((Path(name), rank) for name, rank in ranks.items())
    order = [path.name for path in sorted(place, key=lambda path: place[path])]
    assert [name for name in order if len(name) > 1] == ["large", "system", "windows", "process"]
    assert order[::2] == ["large", "system", "windows", "process"]
    assert order[1::2] == ["a", "b", "c", "d"]


def test_last_files_of_a_run_only_compute() -> None:
    place = places((Path(str(number)), number % 2 * 5) for number in range(200))
    order = sorted(place, key=lambda path: place[path])
    assert all(int(path.name) % 2 for path in order[-15:])


@pytest.mark.no_cover
def test_coverage_traces_no_test_that_is_left_out() -> None:
    """In a process of xdist there may be two coverages, and then to pause one wakes the other."""
    assert not type(sys.gettrace()).__module__.startswith("coverage")
