"""The file of a shared budget is damaged, removed or replaced while proxies use it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from imdsproxy.budget import shared_record as records
from imdsproxy.budget.bucket import Permit
from imdsproxy.testing.clock import FakeClock
from tests.unit.budget.sharing import Join, Said, Sharer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: os.truncate(path, 0),
    "truncated": lambda path: os.truncate(path, 300),
    "longer": lambda path: os.truncate(path, 1 << 20),
    "overwritten": lambda path: path.write_bytes(os.urandom(9_000)),
    "zeroed": lambda path: path.write_bytes(b"\0" * records.SIZE),
    "scribbled on": lambda path: path.write_bytes(path.read_bytes()[:64] + b"x" * (records.SIZE - 64)),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_file_is_logged_once_and_starts_with_every_permit_lent(
    kind: str, join: Join, clock: FakeClock, path: Path, said: Said
) -> None:
    one, other = join(), join()
    held = one.took()
    DAMAGES[kind](path)
    for _ in range(5):
        assert isinstance(other.take(), float)
        assert isinstance(one.take(), float)
    one.release(held)
    assert said() == ["the shared budget was damaged and starts again; no permit is available for 17 s"]
    clock.advance(17.9)
    assert (one.available(), other.available()) == (0, 0)
    clock.advance(0.1)
    assert other.available() == 5
    assert path.stat().st_size == records.SIZE


def test_damaged_file_is_repaired_by_a_starting_proxy(path: Path, clock: FakeClock, said: Said) -> None:
    Sharer(path, clock).close()
    os.truncate(path, 10)
    sharer = Sharer(path, clock)
    clock.advance(17.9)
    assert isinstance(sharer.take(), float)
    clock.advance(0.1)
    sharer.took()
    assert len(said()) == 1
    sharer.close()


@pytest.mark.parametrize("how", ["removed", "replaced by an empty one"])
def test_removed_file_is_replaced_by_one_new_file_for_all(
    how: str, join: Join, clock: FakeClock, path: Path, said: Said
) -> None:
    one, other = join(), join()
    one.took()
    path.unlink()
    if how != "removed":
        path.touch()
    assert isinstance(one.take(), float)
    assert isinstance(other.take(), float)
    clock.advance(18)
    for _ in range(3):
        one.took()
    assert other.available() == 2
    assert said()[0] == "the shared budget was removed or replaced; the file at its path now is used"


def test_replaced_budget_file_is_used(join: Join, clock: FakeClock, path: Path, tmp_path: Path) -> None:
    one = join()
    another = Sharer(tmp_path / "another", clock)
    clock.advance(1.0)
    for _ in range(4):
        another.took()
    (tmp_path / "another").rename(path)
    assert isinstance(one.take(), Permit)
    assert isinstance(one.take(), float)
    another.close()


def test_unopenable_file_stops_requests_and_is_logged(join: Join, clock: FakeClock, path: Path, said: Said) -> None:
    one = join()
    path.unlink()
    path.mkdir()
    assert isinstance(one.take(), float)
    assert isinstance(one.take(), float)
    assert [line for line in said() if "cannot be used" in line] == [
        "the shared budget cannot be used (Is a directory); no request is sent to IMDS"
    ]
    path.rmdir()
    one.take()
    clock.advance(18)
    one.took()


def test_times_of_another_boot_are_ignored(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Sharer(path, clock)
    clock.advance(1.0)
    for _ in range(5):
        before.took()
    before.close()
    boot = path.with_name("boot_id")
    boot.write_text("00000000-0000-4000-8000-000000000001\n", encoding="ascii")
    monkeypatch.setattr("imdsproxy.clock._BOOT_ID", boot)
    after = Sharer(path, FakeClock(monotonic=3.0))
    assert after.available() == 5
    after.close()


def test_wiped_or_restored_section_counts_as_damage(join: Join, clock: FakeClock, path: Path, said: Said) -> None:
    one, other = join(), join()
    before = path.read_bytes()
    for _ in range(5):
        one.took()
    for content in (before[:64].ljust(records.SIZE, b"\0"), before):
        path.write_bytes(content)
        for _ in range(6):
            assert isinstance(other.take(), float)
            assert isinstance(one.take(), float)
        clock.advance(17.5)
    assert len(said()) <= 2, "each the same line at most once a minute"
    clock.advance(1)
    other.took()


def test_start_does_not_take_an_old_file_without_a_record_for_a_new_one(path: Path, clock: FakeClock) -> None:
    Sharer(path, clock).close()
    path.write_bytes(path.read_bytes()[:64].ljust(records.SIZE, b"\0"))
    clock.advance(100)
    sharer = Sharer(path, clock)
    assert isinstance(sharer.take(), float)
    clock.advance(18)
    sharer.took()
    sharer.close()


def test_two_kernels_on_one_file_send_no_requests(
    join: Join, clock: FakeClock, path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = join()
    boot = path.with_name("boot_id")
    boot.write_text("00000000-0000-4000-8000-000000000001\n", encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr("imdsproxy.clock._BOOT_ID", boot)
        there = Sharer(path, clock)
    there.took()
    assert isinstance(here.take(), float)
    assert said() == ["the shared budget is used by another machine or another kernel; no request is sent to IMDS"]
    there.close()


def test_foreign_replacement_file_is_left_unchanged(join: Join, path: Path, tmp_path: Path, said: Said) -> None:
    one = join()
    precious = tmp_path / "precious"
    precious.write_text("root:x:0:0:root:/root:/bin/sh\n", encoding="ascii")
    path.unlink()
    path.hardlink_to(precious)
    assert isinstance(one.take(), float)
    assert precious.read_text(encoding="ascii").startswith("root:")
    assert said()[-1].startswith("the shared budget cannot be used (it is not a budget file")
