"""A shared budget: changes of its file, and how each proxy that shares it reacts."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import logging
import math
import os
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imdsproxy.budget import shared as shared_budget
from imdsproxy.budget import shared_record as records
from imdsproxy.budget.bucket import Permit
from imdsproxy.budget.bucket_state import State
from imdsproxy.budget.joining import share
from imdsproxy.budget.limiter import LATEST_START
from imdsproxy.budget.shared import SharedBudget
from imdsproxy.errors import BudgetFileError
from imdsproxy.testing.clock import FakeClock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a budget is shared on Linux only")

LEASES = (17.0, 137.0)


class Sharer:
    """One who shares a file; several of them in one process are as several processes, but for the presence lock."""

    def __init__(self, path: Path, clock: FakeClock, requests: int = 5, window: float = 1.0) -> None:
        self.clock = clock
        budgets, self.close = share(str(path), clock, window, [(requests, None)], LEASES)
        self.budget: SharedBudget = budgets[0]

    def take(self) -> Permit | float:
        return self.budget.reserve(self.clock.monotonic(), LEASES[0], background=False)

    def took(self) -> Permit:
        """Take one; what others may have first is waited for."""
        permit = self.take()
        if not isinstance(permit, Permit) and permit < 0.021:
            self.clock.advance(permit + 1e-6)
            permit = self.take()
        assert isinstance(permit, Permit), permit
        return permit

    def available(self) -> int:
        return self.budget.available(self.clock.monotonic())

    def release(self, permit: Permit) -> None:
        self.budget.release(permit, self.clock.monotonic())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget"


@pytest.fixture
def join(path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Sharer]]:
    """Join the proxies that share the file, after the first rest of its permits."""
    sharers = []

    def joined(**more: float) -> Sharer:
        new = not path.exists()
        sharer = Sharer(path, clock, **more)  # type: ignore[arg-type]
        sharers.append(sharer)
        if new:
            clock.advance(1.0)
        return sharer

    yield joined
    for sharer in sharers:
        sharer.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "imdsproxy.budget.trouble")
    return lambda: [record.getMessage() for record in caplog.records]


Join = Callable[..., Sharer]
Said = Callable[[], list[str]]


def test_two_proxies_keep_one_budget(join: Join, clock: FakeClock) -> None:
    one, other = join(), join()
    held = [one.took() for _ in range(3)]
    other.took()
    other.took()
    assert (one.available(), other.available()) == (0, 0)
    assert one.take() == 0.25, "others give theirs back unseen, so it looks again soon"
    for permit in held:
        one.release(permit)
    assert other.take() == 0.25
    clock.advance(0.9)
    assert other.take() == pytest.approx(0.12, abs=0.01)
    clock.advance(0.1)
    assert other.available() == 3
    for _ in range(3):
        other.took()
    assert isinstance(one.take(), float)


def test_429_of_one_proxy_throttles_all(join: Join, clock: FakeClock) -> None:
    one, other = join(), join()
    permit = one.took()
    one.budget.throttled(permit.taken_at, clock.monotonic(), 7)
    one.release(permit)
    assert other.available() == 0
    assert other.budget.expected_wait(0, clock.monotonic()) == pytest.approx(7)
    clock.advance(7)
    other.took()


def test_clients_of_one_proxy_come_before_background_refreshes_of_another(join: Join, clock: FakeClock) -> None:
    one, other = join(requests=1), join(requests=1)
    one.release(one.took())
    clock.advance(1.0)
    assert isinstance(other.budget.reserve(clock.monotonic(), 17, background=True), float)
    one.release(one.took())
    clock.advance(1.06)
    assert isinstance(other.budget.reserve(clock.monotonic(), 17, background=True), Permit)


def test_permit_of_a_killed_proxy_returns_when_its_lease_ends(join: Join, clock: FakeClock) -> None:
    killed, living = join(requests=1), join(requests=1)
    killed.took()
    clock.advance(17.9)
    assert isinstance(living.take(), float)
    clock.advance(0.1)
    living.took()


def test_late_release_of_a_stopped_proxy_frees_no_permit_of_another(join: Join, clock: FakeClock) -> None:
    stopped, living = join(requests=1), join(requests=1)
    late = stopped.took()
    clock.advance(18)
    living.took()
    stopped.release(late)
    clock.advance(2)
    assert isinstance(living.take(), float)


def test_restart_keeps_the_state(join: Join, clock: FakeClock) -> None:
    before = join()
    for _ in range(5):
        before.took()
    before.close()
    before.close = lambda: None
    assert join().available() == 0


def test_new_file_is_for_owner_and_group_and_its_permits_rest_one_window(path: Path, clock: FakeClock) -> None:
    before = os.umask(0o077)
    try:
        sharer = Sharer(path, clock)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert path.stat().st_size == records.SIZE
    assert sharer.take() == 0.25
    clock.advance(1.0)
    sharer.took()
    assert list(path.parent.iterdir()) == [path]
    sharer.close()


def test_identity_budget_has_its_own_section(path: Path, clock: FakeClock) -> None:
    (general, identity), close = share(str(path), clock, 1.0, [(5, None), (20, 5)], LEASES)
    clock.advance(1.0)
    now = clock.monotonic()
    assert (general.available(now), identity.available(now)) == (5, 5)
    taken = [identity.reserve(now + 0.03 * number, 17.0, background=False) for number in range(6)]
    assert [isinstance(permit, Permit) for permit in taken] == [True] * 5 + [False]
    assert general.available(now) == 5
    close()


# Changes of the file


def damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)


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


# Refused files


def refusal(path: Path, clock: FakeClock, **more: object) -> str:
    with pytest.raises(BudgetFileError) as caught:
        Sharer(path, clock, **more)  # type: ignore[arg-type]
    return str(caught.value)


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


# Owner and mode

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


# Forged content


FORGED = itertools.count(2**40, 2**20)


def forge(path: Path, state: State) -> None:
    """Put a record into the file as if a proxy had written it."""
    with path.open("r+b") as file:
        offset, piece = records.write(state, 0, next(FORGED))
        file.seek(offset)
        file.write(piece)


@pytest.mark.attack(20)
def test_proxy_keeps_its_own_budget_for_any_file_content(join: Join, clock: FakeClock, path: Path) -> None:
    one = join()
    sent: list[float] = []
    for _ in range(400):
        forge(path, State(128, 0.001))
        permit = one.take()
        if isinstance(permit, Permit):
            sent.append(clock.monotonic())
            one.release(permit)
        clock.advance(0.01)
    assert len(sent) >= 15
    assert all(later - earlier >= 1.0 for earlier, later in zip(sent, sent[5:], strict=False))


def test_proxy_keeps_its_own_429_for_any_file_content(join: Join, clock: FakeClock, path: Path) -> None:
    one = join()
    permit = one.took()
    one.budget.throttled(permit.taken_at, clock.monotonic(), 7)
    one.release(permit)
    forge(path, State(5, 1.0))
    clock.advance(6.9)
    assert isinstance(one.take(), float)
    assert one.available() == 0
    assert one.budget.expected_wait(0, clock.monotonic()) == pytest.approx(0.1)
    clock.advance(0.1)
    one.took()


@pytest.mark.attack(20)
def test_forged_setting_is_ignored(join: Join, clock: FakeClock, path: Path) -> None:
    one = join()
    with path.open("r+b") as file:
        offset, piece = records.write(State(1, 3600.0), 0, 2**40, ((1, 3600.0), (5, 1.0), *records.NO_SETTINGS[2:]))
        file.seek(offset)
        file.write(piece)
    one.take()
    assert one.budget.requests == 5


# Different settings


def test_strictest_setting_counts_while_its_proxy_runs(join: Join, clock: FakeClock, said: Said) -> None:
    first = join(requests=5)
    strict = join(requests=3, window=2.0)
    loose = join(requests=100)
    told = "the shared budget is 3 requests in 2 s now, the setting of the strictest proxy"
    assert said() == [told], "the loose one's; the strict one is told nothing new"
    clock.advance(1)
    for _ in range(3):
        first.took()
    assert [sharer.available() for sharer in (first, strict, loose)] == [0, 0, 0]
    assert first.budget.requests == 3
    assert said() == [told] * 2


def test_single_proxy_uses_its_own_setting(path: Path, clock: FakeClock) -> None:
    Sharer(path, clock, requests=3).close()
    clock.advance(5)
    alone = Sharer(path, clock, requests=5)
    assert alone.available() == 3, "the new ones rest first"
    clock.advance(1)
    assert alone.available() == 5
    alone.close()


@pytest.mark.attack(20)
def test_strictest_setting_ends_with_its_proxy(join: Join, clock: FakeClock, said: Said) -> None:
    loose = join()
    strict = join(requests=1, window=3_600.0)
    loose.take()
    assert loose.budget.requests == 1
    strict.close()
    strict.close = lambda: None
    loose.take()
    assert loose.budget.requests == 5
    clock.advance(1.0)
    assert loose.available() == 4, "the permits that were added rest for a window"
    assert said()[-1] == "the shared budget is 5 requests in 1 s now, the setting of the strictest proxy"


@pytest.mark.parametrize("look", ["available", "expected_wait"])
def test_end_of_the_strictest_proxy_is_noticed_though_nothing_is_taken(join: Join, clock: FakeClock, look: str) -> None:
    """A request with a long expected wait is refused before it takes a permit."""
    loose = join()
    strict = join(requests=1, window=3_600.0)
    assert loose.budget.expected_wait(0, clock.monotonic()) > 3_000
    strict.close()
    strict.close = lambda: None
    for _ in range(2):
        clock.advance(1.0)
        loose.available() if look == "available" else loose.budget.expected_wait(0, clock.monotonic())
    assert loose.budget.requests == 5
    assert loose.budget.expected_wait(0, clock.monotonic()) == 0


def test_second_strictest_setting_counts_after_the_strictest_ended(join: Join, clock: FakeClock) -> None:
    loose, strict, stricter = join(), join(requests=3), join(requests=2)
    same = join(requests=2)
    stricter.close()
    stricter.close = lambda: None
    loose.take()
    assert loose.budget.requests == 2, "another was told the same"
    same.close()
    same.close = lambda: None
    loose.take()
    assert loose.budget.requests == 3
    strict.take()
    assert strict.budget.requests == 3


@pytest.mark.attack(20)
def test_seventeenth_different_setting_is_refused(join: Join, clock: FakeClock, path: Path) -> None:
    sharers = [join(requests=1 + number) for number in range(records.MOST_SETTINGS)]
    assert "give all of them the same" in refusal(path, clock, requests=99)
    sharers[0].close()
    sharers[0].close = lambda: None
    late = join(requests=99)
    late.take()
    assert late.budget.requests == 2


# The lock


def test_held_lock_is_not_waited_for_and_changes_are_made_later(
    join: Join, clock: FakeClock, path: Path, said: Said
) -> None:
    async def scenario() -> None:
        sharer = join(requests=2)
        permit = sharer.took()
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            sharer.release(permit)
            released_at = clock.monotonic()
            again = sharer.take()
            assert isinstance(again, float)
            assert again < 0.01
            await asyncio.sleep(0.01)
            clock.advance(5.9)
            sharer.take()
            assert said() == []
        for _ in range(100):
            await asyncio.sleep(0.005)
            if sharer.available() == 2:
                break
        assert sharer.available() == 2
        assert clock.monotonic() - released_at == pytest.approx(5.9)
        sharer.took()

    asyncio.run(scenario())


def test_close_makes_the_changes_that_are_still_due(join: Join, clock: FakeClock, path: Path) -> None:
    async def scenario() -> None:
        leaving, staying = join(requests=1), join(requests=1)
        permit = leaving.took()
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            leaving.release(permit)
        leaving.close()
        leaving.close = lambda: None
        clock.advance(1)
        staying.took()

    asyncio.run(scenario())


def test_start_waits_briefly_for_the_lock_and_then_names_its_holder(
    path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_budget, "_PATIENCE", 3)
    Sharer(path, clock).close()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert refusal(path, clock) == "another process holds its lock; stop that process, or name another file"


def test_failing_disk_stops_requests_and_is_logged(join: Join, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    one = join()
    permit = one.took()

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        assert isinstance(one.take(), float)
        assert said() == ["the shared budget cannot be used (Input/output error); no request is sent to IMDS"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        assert one.available() < 5, "what was known last"
    assert math.isfinite(permit.taken_at)
    one.took()


@pytest.mark.attack(20)
def test_permanently_held_lock_is_abandoned_with_its_file(join: Join, clock: FakeClock, path: Path, said: Said) -> None:
    one, other = join(), join()
    stopped = one.took()
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)  # as one does that was stopped in the middle
        for _ in range(8):
            assert isinstance(other.take(), float)
            clock.advance(0.9)
        for _ in range(2):
            assert isinstance(other.take(), float)
    assert "the shared budget was locked for too long and starts again; no permit is available for 17 s" in said()
    assert clock.monotonic() - stopped.taken_at > LATEST_START, "so it is not used any more"
    clock.advance(18)
    for _ in range(3):
        other.took()
    one.took()
    assert (one.available(), other.available()) == (1, 1)
    assert list(path.parent.iterdir()) == [path]


def test_lock_held_at_intervals_is_not_abandoned(join: Join, clock: FakeClock, path: Path, said: Said) -> None:
    one = join()
    for _ in range(5):
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            one.take()
        clock.advance(4)
    one.took()
    assert said() == []


def test_permanently_held_lock_in_a_readonly_folder_is_logged(
    join: Join, clock: FakeClock, path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = join()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(10):
            one.take()
            clock.advance(0.9)
    why = "is locked by another process and cannot be replaced (Permission denied)"
    assert said() == [f"the shared budget {why}; no request is sent to IMDS"]
    one.took()


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


def test_running_proxy_is_seen_by_others_and_not_by_itself(path: Path, clock: FakeClock) -> None:
    # Two open files in one process are as two processes.
    first = Sharer(path, clock, requests=3)
    Sharer(path, clock, requests=3).close()
    third = Sharer(path, clock, requests=5)
    third.take()
    assert third.budget.requests == 3, "the first is still there"
    first.close()
    third.close()
    alone = Sharer(path, clock, requests=5)
    alone.take()
    assert alone.budget.requests == 5
    alone.close()


def test_closed_budget_does_nothing(path: Path, clock: FakeClock) -> None:
    async def scenario() -> None:
        sharer = Sharer(path, clock)
        clock.advance(1.0)
        permit = sharer.took()
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            sharer.release(permit)
            sharer.close()
            assert isinstance(sharer.take(), float)
            await asyncio.sleep(0.02)

    asyncio.run(scenario())
