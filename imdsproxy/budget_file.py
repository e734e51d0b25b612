"""One budget for every proxy on the VM, in a small file that all of them open.

The algorithm is `budget.Budget`, the bytes are `budget_record`'s; here are the lock, the file and what can happen to
it.

The lock (flock(2)) is held for some ten microseconds and never waited for: who finds it taken asks again soon. The
kernel lets go of it when its holder dies. The file is read and written, not mapped: a mapped file that somebody
truncates kills whoever looks at it (SIGBUS, mmap(2)), and at this size a copy costs a microsecond.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import stat
import sys
from pathlib import Path
from random import SystemRandom

from imdsproxy import budget_record as records
from imdsproxy.clock import Clock

assert sys.platform != "win32"  # noqa: S101  # the setting is refused there; this tells the type checker

import fcntl  # noqa: E402  # behind the line above

logger = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK_OFFSETS = Path("/proc/self/timens_offsets")
_OWNER_AND_GROUP = 0o660
_OPENED = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_CLOSED = -1
_RANDOM = SystemRandom()
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
_REMINDER = 60.0
# A lock is held for microseconds; beyond this somebody else than a proxy has it, or a proxy that was stopped.
_LOCKED_FOR_LONG = 5.0


class BudgetFileError(Exception):
    """Why the file cannot be used, in one line for people."""


class BudgetFile:
    """The file, which may be damaged, taken away or replaced at any time; then it is begun anew, every token resting.

    `caution` is how many seconds on a token may be back where nothing is known of those that are lent.
    """

    def __init__(self, path: str, clock: Clock, caution: float) -> None:
        self._path = Path(path)
        self._clock = clock
        self._caution = caution
        self._boot = _boot_id()
        self._told_at: dict[str, float] = {}
        self._locked_out_since: float | None = None
        try:
            self._descriptor = self._open(0.0)
            fcntl.lockf(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
            if records.foreign(self._read()):
                raise BudgetFileError("it holds something else; name another file")
        except OSError as error:
            raise BudgetFileError(error.strerror or str(error)) from None

    def lock(self) -> bool:
        """Take the lock, if it is free; then the file is this path's, and `unlock` is due."""
        if self._descriptor == _CLOSED:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_at_its_path():
                self._follow()
        except BlockingIOError:
            self._locked_out()
            return False
        except (OSError, BudgetFileError) as error:
            self.complain(f"cannot be used: {getattr(error, 'strerror', None) or error}")
            self.unlock()
            return False
        self._locked_out_since = None
        return True

    @property
    def pause(self) -> float:
        """Seconds after which to ask for the lock again: the longer it has been taken, the more."""
        since = self._locked_out_since
        taken_for = 0.0 if since is None else self._clock.monotonic() - since
        return _RANDOM.uniform(0.5, 1.5) * min(_LONGEST_PAUSE, _SHORTEST_PAUSE + taken_for / 10)

    def unlock(self) -> None:
        """Let the next one in."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def alone(self) -> bool:
        """Whether no other process has this file open; only while locked."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError:
            return False
        fcntl.lockf(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)  # others look and see that it is in use
        return True

    def content(self) -> tuple[records.Header, bytes]:
        """Give a whole file's header and bytes; only while locked. What is broken, or of before a restart, goes.

        Raises UnknownVersionError.
        """
        content = self._read()
        now = self._clock.monotonic()
        found = records.read_header(content, now)
        if found is not None and found.boot == self._boot:
            return found, content
        if found is None:
            return self._begin(self.begun_anew(now))
        return self._begin(-math.inf)  # the machine was started again, and nobody has a token any more

    def begun_anew(self, now: float) -> float:
        """Tell that something was damaged; gives when the first token may be back."""
        self.complain(f"was damaged and is begun anew; no token is given out for {self._caution:g} s")
        return now + self._caution

    def put(self, offset: int, part: bytes) -> None:
        """Write a part; only while locked."""
        os.pwrite(self._descriptor, part, offset)

    def look(self) -> bytes:
        """Give the bytes as they are; a record's checksum tells whether it was just being written."""
        with contextlib.suppress(OSError):
            return self._read()
        return b""

    def complain(self, what: str) -> None:
        """Log one line, and the same line at most once a minute."""
        now = self._clock.monotonic()
        self._told_at = {told: at for told, at in self._told_at.items() if now - at < _REMINDER}
        if what not in self._told_at:
            self._told_at[what] = now
            logger.warning("the shared budget %s", what, extra={"fields": {"file": str(self._path)}})

    def close(self) -> None:
        """Close it, and with it every lock; nothing is done from then on."""
        os.close(self._descriptor)
        self._descriptor = _CLOSED

    def _read(self) -> bytes:
        return os.pread(self._descriptor, records.SIZE + 1, 0)

    def _open(self, caution: float) -> int:
        """Open the file, and make it where there is none."""
        while True:
            try:
                descriptor = os.open(self._path, _OPENED)
            except FileNotFoundError:
                self._make(self._clock.monotonic() + caution)
                continue
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise BudgetFileError("it is no ordinary file; name another")
            return descriptor

    def _make(self, rests_from: float) -> None:
        """Make a whole file, or none: nobody ever sees a piece of one."""
        unfinished = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(unfinished, _OPENED | os.O_CREAT | os.O_EXCL, _OWNER_AND_GROUP)
        try:
            os.fchmod(descriptor, _OWNER_AND_GROUP)  # whatever the umask says; others of the group share it
            os.pwrite(descriptor, records.header(self._boot, rests_from).ljust(records.SIZE, b"\0"), 0)
            with contextlib.suppress(FileExistsError):  # another was first, and its file is as good
                os.link(unfinished, self._path)
        finally:
            os.close(descriptor)
            unfinished.unlink()

    def _begin(self, rests_from: float) -> tuple[records.Header, bytes]:
        content = records.header(self._boot, rests_from).ljust(records.SIZE, b"\0")
        os.ftruncate(self._descriptor, records.SIZE)
        os.pwrite(self._descriptor, content, 0)
        return records.Header(self._boot, rests_from), content

    def _is_at_its_path(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _follow(self) -> None:
        """Go over to the file that is at the path now."""
        self.complain("was taken away or replaced; what is at its path now is used")
        descriptor = self._open(self._caution)
        os.close(self._descriptor)
        self._descriptor = descriptor
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _locked_out(self) -> None:
        now = self._clock.monotonic()
        if self._locked_out_since is None:
            self._locked_out_since = now
        if now - self._locked_out_since > _LOCKED_FOR_LONG:
            self.complain("is locked by another process; until it lets go nothing is asked of IMDS")


def _boot_id() -> bytes:
    """Give what tells this start of the machine from all others (random(4)); all of its containers see the same.

    Refuses a clock that is not all the machine's.
    """
    with contextlib.suppress(FileNotFoundError):
        for line in _CLOCK_OFFSETS.read_text(encoding="ascii").splitlines():
            name, *offset = line.split()
            if name == "boottime" and offset != ["0", "0"]:
                raise BudgetFileError(
                    "this container has a time of its own (time_namespaces(7)), so it cannot share one"
                )
    return bytes.fromhex(_BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""))
