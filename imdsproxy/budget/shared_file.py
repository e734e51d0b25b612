"""One budget for every proxy on the VM, in a small file that all of them open.

The algorithm is `budget.Budget`, the bytes are `budget_record`'s; here are the lock, the file and what can happen to
it.

The lock (flock(2)) is held for some ten microseconds and never waited for: who finds it taken asks again soon. The
kernel lets go of it when its holder dies. The file is read and written, not mapped: a mapped file that somebody
truncates kills whoever looks at it (SIGBUS, mmap(2)), and at this size a copy costs a microsecond.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from imdsproxy import clock as clocks
from imdsproxy.budget import shared_record as records
from imdsproxy.budget.file_trust import doubt, exposed
from imdsproxy.budget.limiter import LATEST_START
from imdsproxy.budget.trouble import Trouble
from imdsproxy.clock import Clock
from imdsproxy.errors import ImdsproxyError

assert sys.platform == "linux"  # noqa: S101  # the setting is refused elsewhere; this tells the type checker

import fcntl  # noqa: E402  # behind the line above

_OWNER_AND_GROUP = 0o660
_OPENED = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_CLOSED = -1
# A lock is held for microseconds; beyond this somebody else than a proxy has it, or a proxy that was stopped. It is
# longer than a token that was taken may wait for its use.
_LOCKED_FOR_LONG = LATEST_START + 1.0
_SEEN_IN_A_ROW = 1.0
# Locks of places in the list of settings are on bytes beyond the file's end, which may be locked all the same.
_PLACES = 1 << 20
_FLOCK = struct.Struct("hhqqi")  # struct flock of fcntl_locking(2)


class BudgetFileError(ImdsproxyError):
    """Why the file cannot be used, in one line for people."""


class OtherMachineError(Exception):
    """The file has been begun anew by another machine, or by a kernel of its own on this one."""


class BudgetFile:
    """The file, which may be damaged, taken away or replaced at any time; then it is begun anew, every token resting.

    `caution` is how many seconds on a token may be back where nothing is known of those that are lent.
    """

    def __init__(self, path: str, clock: Clock, caution: float) -> None:
        self._path = Path(path)
        self._clock = clock
        self.caution = caution
        if not clocks.is_machine_wide():
            raise BudgetFileError("this container has a time of its own (time_namespaces(7)), so it cannot share one")
        self._boot = clocks.boot_id()
        self._known = False
        self.trouble = Trouble(path, clock)
        self._locked_out: tuple[float, float] | None = None  # since when, and when that was seen last
        self._process = os.getpid()
        try:
            self._descriptor = self._open(0.0)
        except OSError as error:
            raise BudgetFileError(error.strerror or str(error)) from None

    def lock(self) -> bool:
        """Take the lock, if it is free; then the file is this path's, and `unlock` is due."""
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
            self.trouble.bar(f"cannot be used ({getattr(error, 'strerror', None) or error}); nothing is asked of IMDS")
            return False
        self._locked_out = None
        return True

    def unlock(self) -> None:
        """Let the next one in."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def alone(self) -> bool:
        """Whether no other has this file open; only while locked. From then on others see that it is in use."""
        alone = self._hold(fcntl.F_WRLCK)
        self._hold(fcntl.F_RDLCK)
        return alone

    def present(self, place: int) -> bool:
        """Return whether another proxy holds this place in the list of settings; only while locked."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _PLACES + place, 1, 0)
        found = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

    def be_present(self, place: int, left: int | None) -> None:
        """Hold a place in the list of settings, and no longer the one before; the kernel lets go at the end."""
        self._hold(fcntl.F_RDLCK, _PLACES + place)
        if left is not None and left != place:
            self._hold(fcntl.F_UNLCK, _PLACES + left)

    def begin_anew(self) -> None:
        """Begin a file that nobody else uses, every permit taken to be lent; only while locked."""
        self._begin(self._clock.monotonic() + self.caution)

    def content(self) -> tuple[records.Header, bytes]:
        """Give a whole file's header and bytes; only while locked. What is broken goes, or is of before a restart.

        Raises UnknownVersionError, and OtherMachineError.
        """
        content = self._read()
        now = self._clock.monotonic()
        found = records.read_header(content, self._boot, now)
        if found is None:
            found, content = self._begin(self.begun_anew(now))
        elif found.boot != self._boot:
            if self._known:  # since this process has been here, this machine has not been started again
                raise OtherMachineError
            found, content = self._begin(-math.inf)  # nobody has a token any more
        self._known = True
        return found, content

    def begun_anew(self, now: float) -> float:
        """Tell that something was damaged; gives when the first token may be back."""
        self.trouble.complain(f"was damaged and is begun anew; no token is given out for {self.caution:g} s")
        return now + self.caution

    def put(self, offset: int, part: bytes) -> None:
        """Write a part; only while locked."""
        os.pwrite(self._descriptor, part, offset)
        self.trouble.over()

    def look(self) -> bytes:
        """Give the bytes as they are; a record's checksum tells whether it was just being written."""
        with contextlib.suppress(OSError):
            return self._read()
        return b""

    def close(self) -> None:
        """Close it, and with it every lock; nothing is done from then on."""
        os.close(self._descriptor)
        self._descriptor = _CLOSED

    def _hold(self, kind: int, offset: int = 0) -> bool:
        """Hold a lock that says that this process is there; return whether others let that be.

        It belongs to the open file, not to the process (fcntl_locking(2)), so that no other descriptor here drops it.
        """
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
        except OSError:
            return False
        return True

    def _read(self) -> bytes:
        return os.pread(self._descriptor, records.SIZE + 1, 0)

    def _open(self, caution: float) -> int:
        """Open the file, and make it where there is none; BudgetFileError if it is no budget's."""
        while True:
            try:
                descriptor = os.open(self._path, _OPENED)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):  # another was first, and its file is as good
                    self._make(os.link, self._clock.monotonic() + caution)
                continue
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise BudgetFileError("it is a symbolic link; name the file itself") from None
                raise
            try:
                self._check(descriptor)
            except (OSError, BudgetFileError):
                os.close(descriptor)
                raise
            return descriptor

    def _check(self, descriptor: int) -> None:
        """Raise BudgetFileError if the file is no budget's, or of doubtful origin."""
        folder = self._path.parent.stat()
        file = os.fstat(descriptor)
        why = doubt(file, folder, os.geteuid(), {os.getegid(), *os.getgroups()})
        if why is None and records.foreign(os.pread(descriptor, len(records.MAGIC), 0)):
            why = "it holds something else; name another file"
        if why is not None:
            raise BudgetFileError(why)
        if exposed(folder):
            self.trouble.complain("is in a folder that every user can write to; better name one that others cannot")

    def _make(self, put: Callable[[Path, Path], object], rests_from: float) -> None:
        """Make a whole file, or none: nobody ever sees a piece of one."""
        unfinished = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(unfinished, _OPENED | os.O_CREAT | os.O_EXCL, _OWNER_AND_GROUP)
        try:
            os.fchmod(descriptor, _OWNER_AND_GROUP)  # whatever the umask says; others of the group share it
            os.pwrite(descriptor, records.empty(self._header(rests_from)), 0)
            put(unfinished, self._path)
        finally:
            os.close(descriptor)
            unfinished.unlink(missing_ok=True)

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
        """Go over to the file that is at the path now, and take its lock."""
        descriptor = self._open(self.caution)
        self.trouble.complain("was taken away or replaced; what is at its path now is used")
        os.close(self._descriptor)
        self._descriptor = descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._hold(fcntl.F_RDLCK)

    def _open_again(self) -> None:
        """Open the file in a forked child: a lock belongs to the open file, and so to the parent as well."""
        descriptor = self._open(self.caution)
        os.close(self._descriptor)
        self._descriptor, self._process = descriptor, os.getpid()
        self._hold(fcntl.F_RDLCK)

    def _is_locked_out(self) -> None:
        """Note that the lock was taken; replace the file if its holder seems to have been stopped with it.

        When that one goes on, the token that it was about to take is too old to be used.
        """
        now = self._clock.monotonic()
        since, seen_at = self._locked_out or (now, now)
        self._locked_out = (since if now - seen_at < _SEEN_IN_A_ROW else now, now)
        self.trouble.begin()
        if now - self._locked_out[0] > _LOCKED_FOR_LONG:
            try:
                self._make(os.replace, now + self.caution)
            except OSError as error:
                self.trouble.complain(
                    f"is locked by another process and cannot be replaced ({error.strerror}); nothing is asked of IMDS"
                )
            else:
                self.trouble.complain(
                    f"was locked for too long and is begun anew; no token is given out for {self.caution:g} s"
                )
