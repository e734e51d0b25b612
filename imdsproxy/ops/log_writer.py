"""The writer of the log: lines wait in a bounded queue for a thread that writes them to standard error.

Logging never waits. A pipe that is not read, a stalled disk or a stopped terminal delays this thread only. If the queue
is full, lines are dropped and counted. A line reports their number once the log can be written again.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TextIO

MOST_WAITING = 1 << 20
"""Characters that may wait to be written."""

_PIECE = 1 << 16
# Seconds that the exit of the process waits for the last lines.
_LAST_LINES = 2.0
# Seconds between two attempts at a full pipe that another of its owners made non-blocking.
_PIPE_PAUSE = 0.05
# Windows reports a pipe without a reader as an invalid argument.
_READER_GONE = (errno.EPIPE, errno.EINVAL)


class LogWriter:
    """Writes lines to standard error, in order, from a thread that starts with the first line.

    `notice` returns the line that reports a number of dropped lines.
    """

    def __init__(self, notice: Callable[[int], str]) -> None:
        self.notice = notice
        self.dropped = 0
        """Lines that were not written, since the process began."""
        self._begin()
        if hasattr(os, "register_at_fork"):  # a child has no such thread, and the parent writes the waiting lines
            os.register_at_fork(after_in_child=self._begin)
        atexit.register(self._end)

    def put(self, line: str) -> None:
        """Queue a line, without its line end. Never wait; drop the line if the queue is full."""
        with self._changed:
            # After one dropped line all later ones are dropped too, so that the notice is in the right place.
            if self._lost or self._size + len(line) > MOST_WAITING or self._stuck:
                self._lost += 1
                self.dropped += 1
                return
            self._waiting.append(line)
            self._size += len(line)
            if self._has_thread():
                self._changed.notify_all()
                return
        self._write_batch()

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all lines are written, at most `seconds` (None: two); return whether they are."""
        limit = _LAST_LINES if seconds is None else seconds
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._lost or self._busy), limit)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._size = 0
        self._lost = 0  # dropped since the thread last took the waiting lines
        self._unreported = 0  # dropped, and not reported yet
        self._busy = False
        self._cut = False  # the last write ended within a line
        self._thread: threading.Thread | None = None
        self._ended = False
        self._stuck = False

    def _has_thread(self) -> bool:
        """Start the thread if there is none. Return False if the interpreter is shutting down and none may start."""
        if self._thread is None and not self._ended:
            thread = threading.Thread(target=self._run, name="imdsproxy-log", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return not self._ended

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._lost)
            self._write_batch()

    def _write_batch(self) -> None:
        """Write the waiting lines, and report how many were dropped."""
        with self._changed:
            lines, lost = self._waiting, self._lost
            self._waiting, self._size, self._lost = [], 0, 0
            self._busy = True
            self._changed.notify_all()
        self._report()
        failed = self._write(lines)
        self._unreported += lost + failed
        self.dropped += failed
        self._report()
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _report(self) -> None:
        if self._unreported and not self._write([self.notice(self._unreported)]):
            self._unreported = 0

    def _write(self, lines: Sequence[str]) -> int:
        """Write these lines; return how many could not be written."""
        failed = 0
        piece: list[str] = []
        size = 0
        for line in lines:
            if piece and size + len(line) > _PIECE:
                failed += self._write_piece(piece)
                piece, size = [], 0
            piece.append(line)
            size += len(line) + 1
        return failed + self._write_piece(piece) if piece else failed

    def _write_piece(self, lines: Sequence[str]) -> int:
        stream = sys.stderr
        if stream is None:  # a program without a console
            return 0
        encoding = getattr(stream, "encoding", None) or "utf-8"
        data = [(line + "\n").encode(encoding, "backslashreplace") for line in lines]
        start = b"\n" if self._cut else b""
        written = _write_all(stream, start + b"".join(data)) - len(start)
        ends = list(accumulate(map(len, data)))
        if written >= 0:
            self._cut = written not in {0, *ends}
        return sum(end > written for end in ends)

    def _end(self) -> None:
        """Write the last lines. Lines that finalisers log later are written at once, unless the log is stuck."""
        done = self.flush()
        with self._changed:
            self._ended = True
            self._stuck = not done


def _write_all(stream: TextIO, data: bytes) -> int:
    """Write to the raw stream below a text stream, and return how many bytes were written.

    The buffered stream would hold its lock while the write waits. The interpreter takes that lock at exit, and aborts
    if it cannot.
    """
    written = 0
    try:
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)
        if not isinstance(raw, io.RawIOBase):  # not a file, such as what a test captures
            stream.write(data.decode(getattr(stream, "encoding", None) or "utf-8", "replace"))
            stream.flush()
            return len(data)
        while written < len(data):
            count = raw.write(memoryview(data)[written:])
            if count is None:
                time.sleep(_PIPE_PAUSE)
            else:
                written += count
    except OSError as error:
        # Every error but a missing reader may be temporary, such as a full disk.
        if error.errno in _READER_GONE:
            _discard_standard_error()
    except Exception:  # noqa: BLE001, S110 - a stand-in for standard error may raise anything; the thread goes on
        pass
    return written


def _discard_standard_error() -> None:
    """Point standard error at the null device, so that the interpreter's last flush cannot change the exit status."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stderr.fileno())
        os.close(nothing)
    except (OSError, ValueError):
        return
