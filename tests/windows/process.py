"""A process of Windows under Wine: its output, its end, and what it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO

from tests.kit import wait_until

MARK = "TEST_PROCESS"
"""The variable that tells what one process has started."""
END = 60.0
"""Seconds from the end of a test to that of its processes."""
_START = 120.0  # seconds, for a line that a process writes
_LOOK = 0.01


def having(variable: str, value: str) -> list[int]:
    """Return the processes of this machine that have the variable with this value in their environment.

    What a Windows process starts is no child of it here, but has its environment.
    """
    wanted = f"{variable}={value}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def kill(processes: list[int]) -> None:
    """Kill these processes, those that have ended excepted."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


class Process:
    """A Windows process that runs, with the lines it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], mark: str) -> None:
        """Read what the process writes; those that it starts have the mark in their environment."""
        self.process = process
        self._mark = mark
        self.out: list[str] = []
        self.error: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=given, daemon=True)
            for given in ((process.stdout, self.out), (process.stderr, self.error))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def text(self) -> str:
        return "\n".join([*self.out, *self.error])

    def wait_for(self, words: str) -> str:
        """Wait for a line with these words, and return it. AssertionError if the process ends or two minutes pass."""
        end = time.monotonic() + _START
        while words not in self.text and (
            self.process.poll() is None or any(map(threading.Thread.is_alive, self._readers))
        ):
            assert time.monotonic() < end, f"no line with {words!r} within {_START:g} s, but:\n{self.text}"
            time.sleep(_LOOK)
        lines = [line for line in (*self.out, *self.error) if words in line]
        assert lines, f"no line with {words!r}; the process has ended with {self.process.poll()}:\n{self.text}"
        return lines[0]

    def wait_for_any(self) -> None:
        """Wait until the process has written something or has ended; AssertionError if two minutes pass."""
        wait_until(lambda: self.text or not any(map(threading.Thread.is_alive, self._readers)), _START)

    def port(self, words: str = " listening ") -> int:
        """Wait for the line that says where the process listens, and return its port."""
        return int(self.wait_for(words).partition("http://127.0.0.1:")[2].split()[0])

    def ended(self) -> int:
        """Wait for the end, and return the exit status. AssertionError if it does not end, or its output does not."""
        try:
            status = self.process.wait(END)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process has not ended within {END:g} s:\n{self.text}") from None
        for reader in self._readers:
            reader.join(END)
            assert not reader.is_alive(), (
                f"the process has ended with {status}, but others hold its output open: {self.started()}"
            )
        return status

    def kill(self) -> None:
        """End the process at once, and those that it has started: while one lives, the output does not end."""
        if self.process.poll() is None:
            self.process.kill()
        kill(self.started())

    def started(self) -> list[int]:
        """Return those that live of this process and of what it has started."""
        return having(MARK, self._mark)

    @staticmethod
    def _read(pipe: IO[bytes] | None, lines: list[str]) -> None:
        assert pipe is not None
        with pipe:
            for line in pipe:
                lines += [line.decode("cp1252", "replace").rstrip("\r\n")]
