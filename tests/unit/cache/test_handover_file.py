"""The file of the handover: who may have made it, and that it is read once."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("entries are handed over on Linux only", allow_module_level=True)

from imdsproxy.cache.handover import MAGIC, UnusableError
from imdsproxy.cache.handover_file import leave, look, obstacle, remove, take

CONTENT = MAGIC + b" and what follows"
MOST = 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "handover"


def test_file_is_for_its_owner_alone_under_any_umask_and_read_once(path: Path) -> None:
    before = os.umask(0)
    try:
        leave(path, CONTENT)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["handover"], "nothing unfinished is left"
    assert look(path, MOST) == CONTENT
    assert take(path, MOST) == CONTENT
    assert take(path, MOST) is None


def test_file_is_replaced_and_large_content_is_whole(path: Path) -> None:
    leave(path, CONTENT)
    large = MAGIC + bytes(3_000_000)
    leave(path, large)
    assert take(path, len(large)) == large


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_file_with_rights_for_others_is_not_used(path: Path, mode: int) -> None:
    leave(path, CONTENT)
    path.chmod(mode)
    with pytest.raises(UnusableError, match=rf"mode {mode:04o}"):
        take(path, MOST)
    assert path.exists()


def test_file_of_another_user_is_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(path, CONTENT)
    folder = path.parent.stat()
    monkeypatch.setattr(Path, "stat", lambda _self: os.stat_result((stat.S_IFDIR | 0o755, 1, 1, 1, 7, *folder[5:])))
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda number: os.stat_result((*real(number)[:4], 12345, *real(number)[5:])))
    with pytest.raises(UnusableError, match="belongs to user 12345"):
        look(path, MOST)


def test_larger_file_is_not_used(path: Path) -> None:
    leave(path, CONTENT + bytes(MOST))
    with pytest.raises(UnusableError, match="IMDSPROXY_CACHE_MAX_BYTES allows 100"):
        take(path, MOST)


def test_link_is_not_followed(path: Path) -> None:
    leave(path.with_name("other"), CONTENT)
    path.symlink_to("other")
    with pytest.raises(UnusableError, match="symbolic link"):
        take(path, MOST)
    with pytest.raises(UnusableError):
        leave(path, CONTENT)
    assert path.is_symlink()


def test_file_of_another_program_stays(path: Path) -> None:
    path.write_bytes(b"a diary")
    path.chmod(0o600)
    assert take(path, MOST) == b"a diary"
    with pytest.raises(UnusableError, match="not a handover file"):
        leave(path, CONTENT)
    remove(path)
    assert path.read_bytes() == b"a diary"


def test_what_is_no_file_is_not_used(path: Path) -> None:
    os.mkfifo(path, 0o600)
    with pytest.raises(UnusableError, match="not a regular file"):
        look(path, MOST)
    with pytest.raises(UnusableError):
        leave(path, CONTENT)


def test_removing_is_quiet(path: Path) -> None:
    remove(path)
    leave(path, CONTENT)
    remove(path)
    assert not path.exists()


def test_obstacles_name_the_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle(path) is None
    assert "make it, or name a file in one that exists" in str(obstacle(path / "none" / "handover"))
    assert "name a file in it" in str(obstacle(path.parent))
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert "may not write to" in str(obstacle(path))


def test_unreadable_file_raises(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError):
        look(path, MOST)
