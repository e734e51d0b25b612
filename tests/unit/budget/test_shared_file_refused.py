"""Files that no budget is shared through: of another format, version, owner or mode."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from imdsproxy.budget import shared_record as records
from imdsproxy.testing.clock import FakeClock
from tests.unit.budget.sharing import Join, Said, Sharer, refusal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")


def of_version_7() -> bytes:
    content = struct.pack("<16sI16sdd", records.MAGIC, 7, bytes(16), 0.0, 0.0)
    return (content + struct.pack("<I", zlib.crc32(content))).ljust(records.SIZE, b"\0")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text("root:x:0:0:root:/root:/bin/sh\n"), "it is not a budget file; name another"),
        (lambda path: path.mkdir(), "Is a directory"),
        (os.mkfifo, "it is not a regular file; name another"),
        (lambda path: path.symlink_to("/nowhere"), "it is a symbolic link; name the file itself"),
        (lambda path: path.parent.rmdir(), "No such file or directory"),
        (lambda path: path.write_bytes(of_version_7()), "it is of version 7, and this proxy reads version 2"),
    ],
    ids=["foreign", "folder", "fifo", "link", "no folder", "version"],
)
def test_foreign_file_is_refused_and_left_unchanged(
    make: Callable[[Path], object], told: str, tmp_path: Path, clock: FakeClock
) -> None:
    path = tmp_path / "run" / "budget"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else None
    assert told in refusal(path, clock)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_file_of_another_version_stops_requests_and_is_logged(join: Join, path: Path, said: Said) -> None:
    one = join()
    path.write_bytes(of_version_7())
    assert isinstance(one.take(), float)
    assert said() == ["the shared budget is of version 7, which this proxy does not know; no request is sent to IMDS"]
    assert path.read_bytes() == of_version_7()


def test_unshareable_settings_are_reported(path: Path, clock: FakeClock) -> None:
    assert "a shared budget has at most 128 requests" in refusal(path, clock, requests=129)
    assert "lower IMDSPROXY_READ_TIMEOUT" in refusal(path, clock, window=4_000.0)


def test_container_with_its_own_clock_is_refused(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = path.with_name("timens_offsets")
    monkeypatch.setattr("imdsproxy.clock._OFFSETS", offsets)
    offsets.write_text("monotonic           0         0\nboottime      86400         0\n", encoding="ascii")
    assert "clock of its own" in refusal(path, clock)
    offsets.unlink()
    Sharer(path, clock).close()  # a kernel without time namespaces


def test_unused_file_of_an_older_release_is_replaced(path: Path, clock: FakeClock) -> None:
    content = struct.pack("<16sI16sdd", records.MAGIC, 1, bytes(16), 0.0, 0.0)
    path.write_bytes((content + struct.pack("<I", zlib.crc32(content))).ljust(9_000, b"\0"))
    path.chmod(0o660)
    with path.open("rb") as used:
        fcntl.fcntl(used, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0))
        assert "it is of version 1, and this proxy reads version 2" in refusal(path, clock)
    sharer = Sharer(path, clock)
    assert isinstance(sharer.take(), float)
    clock.advance(18)
    sharer.took()
    sharer.close()


needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can change the owner of a file"
)


@pytest.mark.attack(20)
@needs_root
def test_file_of_another_user_is_refused_with_the_remedy(path: Path, clock: FakeClock) -> None:
    Sharer(path, clock).close()
    os.chown(path, 1234, 1234)
    told = refusal(path, clock)
    assert "it belongs to user 1234, and this proxy runs as user 0; remove it" in told


@needs_root
def test_file_of_its_folders_owner_is_accepted(path: Path, clock: FakeClock) -> None:
    Sharer(path, clock).close()
    os.chown(path, 1234, 0)
    os.chown(path.parent, 1234, 0)
    Sharer(path, clock).close()


@pytest.mark.attack(20)
def test_world_writable_file_is_refused_with_the_remedy(path: Path, clock: FakeClock) -> None:
    Sharer(path, clock).close()
    path.chmod(0o666)
    assert "every user may write to it (mode 0666)" in refusal(path, clock)


def test_file_that_becomes_untrusted_stops_requests_and_is_logged(
    join: Join, path: Path, tmp_path: Path, said: Said
) -> None:
    one = join()
    forged = tmp_path / "forged"
    forged.write_bytes(path.read_bytes())
    forged.chmod(0o666)
    forged.rename(path)
    assert isinstance(one.take(), float)
    assert said()[-1].startswith("the shared budget cannot be used (every user may write to it (mode 0666)")


def test_world_writable_folder_is_logged(path: Path, clock: FakeClock, said: Said) -> None:
    path.parent.chmod(0o1777)
    Sharer(path, clock).close()
    assert said() == ["the shared budget is in a folder that every user can write to; name a file in another folder"]
