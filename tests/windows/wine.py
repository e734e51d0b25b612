"""Windows under Wine: its processes, their output and their arguments."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.kit import ROOT, wait_until

PREPARED = ROOT / ".debian" / "windows"
WINE = Path("/usr/lib/wine/wine64")
SERVER = Path("/usr/lib/wine/wineserver64")
_CONSOLE = Path(__file__).with_name("console.py")
_START = 120.0  # seconds, for a line that a process writes
_END = 60.0  # seconds, from the end of a test to that of its processes
_PREPARATION = 180.0  # seconds, for each program that makes a Windows
_LOOK = 0.01
_MARK = "TEST_PROCESS"
_numbers = itertools.count(1)
CTRL_C = "0"


def missing() -> str:
    """Return what this machine lacks to run Windows' Python; empty if it lacks nothing."""
    if sys.platform != "linux":
        return "Wine is tried on Linux only"
    absent = [str(program) for program in (WINE, SERVER) if not program.exists()]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install wine64)"
    if len(_prepared()) != 2:
        return f"{PREPARED.relative_to(ROOT)} does not hold one Python and one prefix (.ci/windows prepares them)"
    return ""


def _prepared() -> list[Path]:
    return [*PREPARED.glob("python-*"), *PREPARED.glob("prefix-*")]


def windows_path(path: Path) -> str:
    """Return the path as Windows' programs see it: Wine shows the whole file system as drive Z."""
    return "Z:" + str(path).replace("/", "\\")


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


def _kill(processes: list[int]) -> None:
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
            status = self.process.wait(_END)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process has not ended within {_END:g} s:\n{self.text}") from None
        for reader in self._readers:
            reader.join(_END)
            assert not reader.is_alive(), (
                f"the process has ended with {status}, but others hold its output open: {self.started()}"
            )
        return status

    def kill(self) -> None:
        """End the process at once, and those that it has started: while one lives, the output does not end."""
        if self.process.poll() is None:
            self.process.kill()
        _kill(self.started())

    def started(self) -> list[int]:
        """Return those that live of this process and of what it has started."""
        return having(_MARK, self._mark)

    @staticmethod
    def _read(pipe: IO[bytes] | None, lines: list[str]) -> None:
        assert pipe is not None
        with pipe:
            for line in pipe:
                lines += [line.decode("cp1252", "replace").rstrip("\r\n")]


class Windows:
    """A Windows with Python and the proxy in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefix = folder / "prefix"
        python, prefix = _prepared()
        # Hard links, but for what Wine writes to: the registry, in files at the top.
        subprocess.run(["cp", "--archive", "--link", prefix, self._prefix], check=True, timeout=_PREPARATION)
        for file in self._prefix.iterdir():
            if file.is_file() and not file.is_symlink():
                file.unlink()
                shutil.copy2(prefix / file.name, file)
        self._python = python / "python.exe"
        self._path = ";".join(map(windows_path, (python / "packages", ROOT)))
        self._complete(SERVER, "--persistent=60")
        # The first process brings Windows' own with it, which keep what they inherit: the null device, not a pipe.
        self._complete(WINE, "wineboot")
        # The server, and Windows' own processes with it, end a minute after the last other process. Without this one,
        # the next test would bring new ones, which would hold its pipes. It ends with the process of the tests.
        self._keeper = subprocess.Popen(
            [WINE, self._python, "-c", "import sys; sys.stdin.read()"],
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        """End every process of this Windows, and the server behind them."""
        assert self._keeper.stdin
        self._keeper.stdin.close()
        try:
            with contextlib.suppress(subprocess.CalledProcessError):  # it has ended already
                self._complete(SERVER, "--kill")
        finally:
            _kill(having("WINEPREFIX", str(self._prefix)))
            self._keeper.wait(_END)

    def _complete(self, *command: str | Path) -> None:
        """Run a program of Wine to its end. TimeoutExpired names it if it does not end."""
        nothing = subprocess.DEVNULL
        env = self._environment()
        subprocess.run(
            command, env=env, stdin=nothing, stdout=nothing, stderr=nothing, check=True, timeout=_PREPARATION
        )

    def run(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run a command line of the proxy that ends by itself; settings are named in lower case."""
        return self.run_python("-m", "imdsproxy", *arguments, **settings)

    def run_python(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run Windows' Python, until it ends by itself."""
        with self.python(*arguments, **settings) as process:
            status = process.ended()
            return subprocess.CompletedProcess(arguments, status, "\n".join(process.out), "\n".join(process.error))

    @contextlib.contextmanager
    def python(self, *arguments: str, **settings: object) -> Iterator[Process]:
        """Run Windows' Python; what it has started, and itself, is killed at the end unless it has ended."""
        mark = f"{os.getpid()}-{next(_numbers)}"
        # Not as a context, whose end would close the pipes: that waits for the readers without a limit, even as Python
        # handles no signal, while any process holds the other end.
        process = subprocess.Popen(
            [WINE, self._python, *arguments],
            env={**self._environment(**settings), _MARK: mark},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        running = Process(process, mark)
        try:
            yield running
        finally:
            running.kill()
            running.ended()

    @contextlib.contextmanager
    def proxy(self, *arguments: str, **settings: object) -> Iterator[Process]:
        """Run the proxy on a free port, or another of the program's commands, which writes something at its start.

        On a busy machine, Wine sometimes ends with status 1 before Python runs, without a word. Then it is started once
        more. What the program itself ends with has a line.
        """
        for final in (False, True):
            with self.python("-m", "imdsproxy", *arguments, **{"port": 0, **settings}) as process:
                if not final:
                    process.wait_for_any()
                if final or process.text or process.process.poll() != 1:
                    yield process
                    return

    @contextlib.contextmanager
    def console(self, order: Path, *arguments: str, **settings: object) -> Iterator[Process]:
        """Run the program in a console of its own; what is written to `order` is the event that the console gets.

        The process that is yielded ends with the program's exit status.
        """
        with self.python(
            windows_path(_CONSOLE), windows_path(order), windows_path(self._python), *arguments, **settings
        ) as process:
            yield process

    def _environment(self, **settings: object) -> dict[str, str]:
        ours = {f"IMDSPROXY_{name.upper()}": str(value) for name, value in settings.items() if value is not None}
        others = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
        return {
            **others,
            "IMDSPROXY_UPSTREAM": "http://127.0.0.1:9",
            **ours,
            "WINEPREFIX": str(self._prefix),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",
            "PYTHONPATH": self._path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONFAULTHANDLER": "1",  # a crash of Wine is not to look like an end
        }
