from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imdsproxy.budget.shared_record import MAGIC
from imdsproxy.errors import BudgetFileError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")

if sys.platform == "linux":
    from imdsproxy.budget.file_opening import make, open_or_make

CONTENT = MAGIC + b" and what follows"


def read(path: Path, new: Callable[[], bytes] = lambda: CONTENT) -> bytes:
    said: list[str] = []
    descriptor = open_or_make(path, new, said.append)
    assert not said
    try:
        return os.pread(descriptor, 100, 0)
    finally:
        os.close(descriptor)


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_missing_file_is_created_for_owner_and_group_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert read(tmp_path / "budget") == CONTENT
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "budget").stat().st_mode) == 0o660
    assert names(tmp_path) == {"budget"}, "nothing unfinished is left"


def test_existing_file_is_opened_unchanged(tmp_path: Path) -> None:
    make(tmp_path / "budget", CONTENT, os.link)
    assert read(tmp_path / "budget", lambda: b"") == CONTENT


def test_file_created_by_another_process_meanwhile_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "budget"

    def late() -> bytes:
        make(path, CONTENT, os.link)
        return MAGIC + b" of this process"

    assert read(path, late) == CONTENT
    assert names(tmp_path) == {"budget"}


@pytest.mark.attack(20)
def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "budget", CONTENT, os.link)
    (tmp_path / "link").symlink_to("budget")
    with pytest.raises(BudgetFileError, match="symbolic link"):
        read(tmp_path / "link")


def test_file_with_other_content_is_refused_and_closed(tmp_path: Path) -> None:
    (tmp_path / "budget").write_bytes(b"something else")
    (tmp_path / "budget").chmod(0o600)
    open_before = names(Path("/proc/self/fd"))
    with pytest.raises(BudgetFileError, match="not a budget file"):
        read(tmp_path / "budget")
    assert names(Path("/proc/self/fd")) == open_before
