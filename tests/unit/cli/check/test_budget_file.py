"""What is read of a budget file, without changing it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("a budget is shared on Linux only", allow_module_level=True)

from imdsproxy.budget import shared_record as records
from imdsproxy.budget.file_presence import mark
from imdsproxy.budget.shared_file import PLACES
from imdsproxy.cli.check.facts import BudgetFile, Process
from imdsproxy.cli.check.probes import budget_file
from imdsproxy.clock import SystemClock, boot_id

PROXY = Process(42, 990, "imdsproxy")


def look(path: Path) -> BudgetFile:
    return budget_file.look_at_budget_file(str(path), SystemClock(), (PROXY,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a whole budget with three settings in it."""
    now = SystemClock.monotonic()
    content = bytearray(records.empty(records.Header(boot_id(), now, now)))
    settings = ((5, 1.0), (4, 2.0), (3, 1.0), *records.NO_SETTINGS[3:])
    offset, section = records.write(records.begun(5, 1.0, now), 0, 1, settings)
    content[offset : offset + len(section)] = section
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o750)
    file = folder / "budget"
    file.write_bytes(content)
    file.chmod(0o660)
    return file


def test_settings_of_running_proxies_are_read(path: Path) -> None:
    assert look(path) == BudgetFile(str(path), exists=True, processes=(PROXY,))
    before = path.read_bytes()
    descriptor = os.open(path, os.O_RDWR)
    try:
        mark(descriptor, PLACES)
        mark(descriptor, PLACES + 1)
        assert look(path).settings == ((5, 1.0), (4, 2.0))
    finally:
        os.close(descriptor)
    assert path.read_bytes() == before


def test_file_of_an_earlier_start_of_the_machine_has_no_settings(path: Path) -> None:
    path.write_bytes(records.empty(records.Header(bytes(16), 1.0, 1.0)))
    assert look(path) == BudgetFile(str(path), exists=True, processes=(PROXY,))


def test_section_that_no_proxy_has_written_has_no_settings(path: Path) -> None:
    now = SystemClock.monotonic()
    path.write_bytes(records.empty(records.Header(boot_id(), now, now)))
    assert look(path).settings == ()


def test_missing_file_and_folder_are_told_apart(path: Path) -> None:
    assert look(path.with_name("other")) == BudgetFile(str(path.with_name("other")))
    found = look(path.parent / "none" / "budget")
    assert (found.problem, found.words) == ("folder", "its folder does not exist")


def test_folder_that_may_not_be_written_is_a_problem(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert look(path.with_name("other")).problem == "folder"


def test_file_that_may_not_be_read_is_denied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert look(path) == BudgetFile(str(path), problem="denied", words="Permission denied")


def test_link_is_distrusted(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    assert look(link).problem == "distrusted"


def test_file_that_others_may_write_is_distrusted(path: Path) -> None:
    path.chmod(0o666)
    found = look(path)
    assert (found.problem, found.exists) == ("distrusted", True)
    assert "0666" in found.words


def test_exposed_folder_is_noted(path: Path) -> None:
    path.parent.chmod(0o777)
    assert look(path).exposed


@pytest.mark.parametrize(
    ("content", "problem", "damaged"),
    [
        (b"something else", "foreign", False),
        (b"", "", True),
        (records.MAGIC, "", True),
        (records.MAGIC + bytes(records.SIZE), "", True),
    ],
)
def test_content_of_the_file_is_reported(path: Path, content: bytes, problem: str, damaged: bool) -> None:
    path.write_bytes(content)
    found = look(path)
    assert (found.problem, found.damaged) == (problem, damaged)


def test_another_version_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "VERSION", records.VERSION + 1)
    found = look(path)
    assert found.problem == "version"
    assert f"of version {records.VERSION - 1}" in found.words


def test_time_of_its_own_is_a_problem(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_file, "is_machine_wide", lambda: False)
    assert look(path).problem == "clock"
