"""The log writer: never waits, is bounded, keeps the order, counts and reports every loss."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from imdsproxy.ops import log_writer
from imdsproxy.ops.log_writer import MOST_WAITING, LogWriter

Buffer = bytes | bytearray | memoryview


class Pipe:
    """A pipe as standard error, and its other end."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.stream = os.fdopen(writing, "w", encoding="ascii")

    def read_until(self, last: bytes) -> bytes:
        received = b""
        while not received.endswith(last):
            assert select.select([self.reading], [], [], 10)[0], received[-200:]
            received += os.read(self.reading, 1 << 20)
        return received

    def fill(self) -> int:
        """Leave no room in the pipe; return how many bytes that took."""
        os.set_blocking(self.stream.fileno(), False)
        count = 0
        try:
            while True:
                count += os.write(self.stream.fileno(), b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(self.stream.fileno(), True)
            return count


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    with pipe.stream:
        yield pipe
        os.close(pipe.reading)


@pytest.fixture
def writer(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> LogWriter:
    """Return a writer to the pipe; sys.stderr itself is changed by pytest between a fixture and its test."""
    monkeypatch.setattr(log_writer, "sys", SimpleNamespace(stderr=pipe.stream))
    return LogWriter(lambda count: f"{count} dropped")


def test_thread_starts_with_the_first_line() -> None:
    before = threading.active_count()
    LogWriter(str)
    assert threading.active_count() == before


@pytest.mark.skipif(sys.platform == "win32", reason="pipes cannot be made non-blocking there")
def test_unread_pipe_blocks_no_caller_and_the_loss_is_reported_in_order(writer: LogWriter, pipe: Pipe) -> None:
    filled = pipe.fill()
    line = "x" * 1000
    count = 3 * MOST_WAITING // 1000
    writer.put(f"{0:06}{line}")
    with writer._changed:  # the thread has taken it, and waits for the pipe
        assert writer._changed.wait_for(lambda: writer._busy, 10)
    for number in range(1, count):
        writer.put(f"{number:06}{line}")
    dropped = writer.dropped
    assert 0 < dropped < count
    assert not writer.flush(0.01)
    received = pipe.read_until(b"%d dropped\n" % dropped)[filled:].splitlines()
    assert [int(line[:6]) for line in received[:-1]] == list(range(count - dropped))
    assert writer.flush()
    writer.put("later")
    assert pipe.read_until(b"later\n") == b"later\n"
    assert writer.dropped == dropped


@pytest.mark.skipif(sys.platform == "win32", reason="pipes cannot be made non-blocking there")
def test_non_blocking_pipe_loses_no_line(writer: LogWriter, pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    for _ in range(300):
        writer.put("x" * 1000)
    writer.put("last")
    assert pipe.read_until(b"last\n") == (b"x" * 1000 + b"\n") * 300 + b"last\n"
    assert writer.flush()
    assert writer.dropped == 0


def test_characters_outside_the_encoding_are_escaped(writer: LogWriter, pipe: Pipe) -> None:
    writer.put("é\ud800")
    assert pipe.read_until(b"\n") == b"\\xe9\\ud800\n"


class Disk(io.RawIOBase):
    """Takes so many bytes and is full then."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.content = b""

    def write(self, data: Buffer) -> int:  # type: ignore[override]  # what is handed over is bytes
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.content += taken
        return len(taken)


class Unbuffered:
    """A text stream over it, as `python -u` makes one."""

    encoding = "ascii"

    def __init__(self, raw: Disk) -> None:
        self.buffer = raw


@pytest.mark.parametrize(
    ("room", "content", "dropped"),
    [
        (0, b"2 dropped\nthird\n", 2),
        (3, b"fir\n2 dropped\nthird\n", 2),
        (6, b"first\n1 dropped\nthird\n", 1),
        (8, b"first\nse\n1 dropped\nthird\n", 1),
    ],
)
def test_truncated_line_counts_as_dropped_and_the_next_line_is_whole(
    room: int, content: bytes, dropped: int, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(room)
    monkeypatch.setattr(log_writer, "sys", SimpleNamespace(stderr=Unbuffered(disk)))
    monkeypatch.setattr(writer, "_ended", True)  # so that both are written in the order of this test's steps
    writer._waiting.append("first")
    writer.put("second")
    assert writer.dropped == dropped
    disk.room = 1000
    writer.put("third")
    assert disk.content == content
    assert writer.dropped == dropped


def test_lines_are_written_at_once_if_no_thread_can_start(
    writer: LogWriter, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writer.put("x")
    assert writer.flush(0)
    assert pipe.read_until(b"x\n") == b"x\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes cannot be made non-blocking there")
def test_exit_waits_a_bounded_time_for_a_stuck_log(
    writer: LogWriter, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "_LAST_LINES", 0.01)
    pipe.fill()
    writer.put("stuck")
    writer._end()
    writer.put("after")
    assert writer.dropped == 1
    pipe.read_until(b"stuck\n1 dropped\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_writes_only_its_own_lines(writer: LogWriter, pipe: Pipe) -> None:
    filled = pipe.fill()
    writer.put("of the parent")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            writer.put("of the child")
            status = 0 if writer.flush(10) else 2
        finally:
            os._exit(status)
    received = b""
    while not (b"of the child\n" in received and b"of the parent\n" in received):
        assert select.select([pipe.reading], [], [], 10)[0], received[-200:]
        received += os.read(pipe.reading, 1 << 20)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(received[filled:].splitlines()) == [b"of the child", b"of the parent"]
    assert writer.flush()
