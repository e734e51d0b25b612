"""The file of a budget that all proxies on the VM share: its lock, and what can happen to it.

`bucket` has the algorithm, and `shared_record` the bytes. The lock (flock(2)) is held for about ten microseconds. No
process waits for it; if it is taken, the next attempt follows soon. The kernel releases it when its holder dies. The
file is read and written, not mapped: truncating a mapped file kills every process that reads it (SIGBUS, mmap(2)), and
at this size a copy takes a microsecond.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path

from imdsproxy import clock as clocks
from imdsproxy.budget import shared_record as records
from imdsproxy.budget.limiter import LATEST_START
from imdsproxy.budget.trouble import Trouble
from imdsproxy.clock import Clock
from imdsproxy.errors import BudgetFileError

assert sys.platform == "linux"  # noqa: S101  # the setting is refused elsewhere; this tells the type checker

import fcntl  # noqa: E402  # behind the line above

from imdsproxy.budget.file_opening import make, open_or_make  # noqa: E402  # as well
from imdsproxy.budget.file_presence import is_marked_by_another, mark, mark_if_alone, unmark  # noqa: E402  # as well

_CLOSED = -1
# A lock is held for microseconds. Beyond these seconds another program has it, or a stopped proxy. They are longer than
# a permit may wait for its use.
_LOCKED_FOR_LONG = LATEST_START + 1.0
_SEEN_IN_A_ROW = 1.0
PLACES = 1 << 20
"""The byte, beyond the file's end, that marks the first place in the list of settings; the others follow."""


class OtherMachineError(Exception):
    """Another machine, or another kernel on this one, has started the file again."""


def obstacle(error: Exception) -> str:
    """Return why the file cannot be used, as the end of a sentence about the shared budget."""
    if isinstance(error, records.UnknownVersionError):
        return f"is of version {error}, which this proxy does not know"
    if isinstance(error, OtherMachineError):
        return "is used by another machine or another kernel"
    return f"cannot be used ({error.strerror if isinstance(error, OSError) else error})"


class BudgetFile:
    """The file, which may be damaged, removed or replaced at any time. It then starts again with every permit lent."""

    def __init__(self, path: str, clock: Clock, caution: float) -> None:
        """Open the file, or make it.

        Args:
            path: The path of the file.
            clock: The machine's clock.
            caution: Seconds after which a permit can return if the loans are unknown.

        Raises:
            BudgetFileError: The file cannot be used.
        """
        self._path = Path(path)
        self._clock = clock
        self.caution = caution
        if not clocks.is_machine_wide():
            raise BudgetFileError(
                "this container has a clock of its own (time_namespaces(7)), so it cannot share a budget"
            )
        self._boot = clocks.boot_id()
        self._known = False
        self.trouble = Trouble(path, clock)
        self._locked_out: tuple[float, float] | None = None  # since when, and when that was last noticed
        self._process = os.getpid()
        try:
            self._descriptor = self._open(0.0)
        except OSError as error:
            raise BudgetFileError(error.strerror or str(error)) from None

    def lock(self) -> bool:
        """Take the lock if it is free, and return whether it was taken. The file is then the one at the path."""
        if self._descriptor == _CLOSED:
            return False
        try:
            if self._process != os.getpid():
                self._open_again()
            if self._is_at_its_path():
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._is_at_its_path():
                self._follow()
        except BlockingIOError:
            self._is_locked_out()
            return False
        except (OSError, BudgetFileError) as error:
            self.unlock()
            self.trouble.bar(
                f"cannot be used ({getattr(error, 'strerror', None) or error}); no request is sent to IMDS"
            )
            return False
        self._locked_out = None
        return True

    def unlock(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def alone(self) -> bool:
        """Return whether no other process has this file open; only while locked. Others then see that it is in use."""
        return mark_if_alone(self._descriptor)

    def present(self, place: int) -> bool:
        """Return whether another proxy holds this place in the list of settings; only while locked."""
        return is_marked_by_another(self._descriptor, PLACES + place)

    def be_present(self, place: int, left: int | None) -> None:
        """Hold a place in the list of settings instead of `left`. The kernel releases it at the end of the process."""
        mark(self._descriptor, PLACES + place)
        if left is not None and left != place:
            unmark(self._descriptor, PLACES + left)

    def start_again(self) -> None:
        """Start a file again that no other process uses, with every permit lent; only while locked."""
        self._begin(self._clock.monotonic() + self.caution)

    def content(self) -> tuple[records.Header, bytes]:
        """Return the file's header and bytes; only while locked.

        A damaged file, or one of an earlier start of the machine, is started again first.

        Raises:
            UnknownVersionError: The file is of another version.
            OtherMachineError: Another machine has started it again.
        """
        content = self._read()
        now = self._clock.monotonic()
        found = records.read_header(content, self._boot, now)
        if found is None:
            found, content = self._begin(self.note_damage(now))
        elif found.boot != self._boot:
            if self._known:  # this machine cannot have been restarted while this process ran
                raise OtherMachineError
            found, content = self._begin(-math.inf)  # no permit is lent after a restart
        self._known = True
        return found, content

    def note_damage(self, now: float) -> float:
        """Log that the file was damaged, and return when the first permit can return."""
        self.trouble.complain(f"was damaged and starts again; no permit is available for {self.caution:g} s")
        return now + self.caution

    def put(self, offset: int, part: bytes) -> None:
        """Write a part; only while locked."""
        os.pwrite(self._descriptor, part, offset)
        self.trouble.over()

    def look(self) -> bytes:
        """Return the bytes without the lock. A record's checksum shows whether it was just being written."""
        with contextlib.suppress(OSError):
            return self._read()
        return b""

    def close(self) -> None:
        """Close the file, and with it every lock. Later calls of `lock` return False."""
        os.close(self._descriptor)
        self._descriptor = _CLOSED

    def _read(self) -> bytes:
        return os.pread(self._descriptor, records.SIZE + 1, 0)

    def _open(self, caution: float) -> int:
        return open_or_make(self._path, lambda: self._new(caution), self.trouble.complain)

    def _new(self, caution: float) -> bytes:
        """Return the content of a new file, whose permits rest from `caution` seconds on."""
        return records.empty(self._header(self._clock.monotonic() + caution))

    def _begin(self, rests_from: float) -> tuple[records.Header, bytes]:
        header = self._header(rests_from)
        content = records.empty(header)
        os.ftruncate(self._descriptor, records.SIZE)
        os.pwrite(self._descriptor, content, 0)
        return header, content

    def _header(self, rests_from: float) -> records.Header:
        return records.Header(self._boot, self._clock.monotonic(), rests_from)

    def _is_at_its_path(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _follow(self) -> None:
        """Change to the file that is at the path now, and take its lock."""
        descriptor = self._open(self.caution)
        self.trouble.complain("was removed or replaced; the file at its path now is used")
        os.close(self._descriptor)
        self._descriptor = descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mark(self._descriptor)

    def _open_again(self) -> None:
        """Open the file in a forked child: a lock belongs to the open file, and so to the parent as well."""
        descriptor = self._open(self.caution)
        os.close(self._descriptor)
        self._descriptor, self._process = descriptor, os.getpid()
        mark(self._descriptor)

    def _is_locked_out(self) -> None:
        """Note that the lock was taken, and replace the file if its holder seems to be stopped.

        When that process continues, the permit that it was about to take is too old to be used.
        """
        now = self._clock.monotonic()
        since, seen_at = self._locked_out or (now, now)
        self._locked_out = (since if now - seen_at < _SEEN_IN_A_ROW else now, now)
        self.trouble.begin()
        if now - self._locked_out[0] > _LOCKED_FOR_LONG:
            try:
                make(self._path, self._new(self.caution), os.replace)
            except OSError as error:
                self.trouble.complain(
                    f"is locked by another process and cannot be replaced ({error.strerror}); "
                    "no request is sent to IMDS"
                )
            else:
                self.trouble.complain(
                    f"was locked for too long and starts again; no permit is available for {self.caution:g} s"
                )
