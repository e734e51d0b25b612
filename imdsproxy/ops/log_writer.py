"""The log's way out: lines wait within a bound for a thread that writes them to standard error.

Logging never waits. A pipe that is not read, a stalled disk or a stopped terminal holds up this thread alone. Lines
that find no room are dropped and counted, and the log says how many there were once it can be written again.
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
# Seconds that the end of the process is held up for the last lines, and between two looks at a full pipe that its
# other owner made non-blocking.
_LAST_WORDS = 2.0
_LOOK_AGAIN = 0.05
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
        if hasattr(os, "register_at_fork"):  # the thread stays behind, and the parent writes what waits
            os.register_at_fork(after_in_child=self._begin)
        atexit.register(self._end)

    def put(self, line: str) -> None:
        """Hand a line over, without its line end. Never wait; drop it if too much waits already."""
        with self._changed:
            # After a line was dropped so are those behind it, or the notice would stand in the wrong place.
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
        """Wait until all is written, but no longer than this (default: two seconds); return whether it is."""
        limit = _LAST_WORDS if seconds is None else seconds
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._lost or self._busy), limit)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._size = 0
        self._lost = 0  # dropped since the thread last took what waited
        self._untold = 0  # dropped, and not reported yet
        self._busy = False
        self._cut = False  # the last write ended in the midst of a line
        self._thread: threading.Thread | None = None
        self._ended = False
        self._stuck = False

    def _has_thread(self) -> bool:
        """Start the thread if there is none; return False where the interpreter is about to end and none may start."""
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
        """Write what waits, and report what was dropped."""
        with self._changed:
            lines, lost = self._waiting, self._lost
            self._waiting, self._size, self._lost = [], 0, 0
            self._busy = True
            self._changed.notify_all()
        self._report()
        failed = self._write(lines)
        self._untold += lost + failed
        self.dropped += failed
        self._report()
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _report(self) -> None:
        if self._untold and not self._write([self.notice(self._untold)]):
            self._untold = 0

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
        """See the last lines out. Later ones, of a finaliser, are written where they arise unless the log is stuck."""
        done = self.flush()
        with self._changed:
            self._ended = True
            self._stuck = not done


def _write_all(stream: TextIO, data: bytes) -> int:
    """Write to the stream under a text stream, as a lock above it would be held while the write waits.

    The interpreter takes that lock on its way out, and aborts if it cannot. Return how many bytes were written.
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
                time.sleep(_LOOK_AGAIN)
            else:
                written += count
    except OSError as error:
        # Anything else than a missing reader may pass, such as a full disk.
        if error.errno in _READER_GONE:
            _discard_standard_error()
    except Exception:  # noqa: BLE001, S110 - whatever stands in for standard error, or was closed, the thread goes on
        pass
    return written


def _discard_standard_error() -> None:
    """Point standard error at nothing, or else the interpreter's last flush would change the exit status."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stderr.fileno())
        os.close(nothing)
    except (OSError, ValueError):
        return
