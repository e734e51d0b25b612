"""Windows under Wine: how it is made, and how programs are started in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kit import ROOT
from tests.windows.network import network_of_windows
from tests.windows.process import END, MARK, Process, having, kill

PREPARED = ROOT / ".debian" / "windows"
WINE = Path("/usr/lib/wine/wine64")
SERVER = Path("/usr/lib/wine/wineserver64")
_CONSOLE = Path(__file__).with_name("console.py")
_PREPARATION = 180.0  # seconds, for each program that makes a Windows
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
        self._network = network_of_windows()
        with self.inside():
            self._complete(SERVER, "--persistent=60")
            # The first process brings Windows' own with it, which keep what they inherit: the null device, not a pipe.
            self._complete(WINE, "wineboot")
            # The server, and Windows' own processes with it, end a minute after the last other process. Without this
            # one, the next test would bring new ones, which would hold its pipes. It ends with that of the tests.
            self._keeper = subprocess.Popen(
                [WINE, self._python, "-c", "import sys; sys.stdin.read()"],
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the loopback of this thread is that of this Windows."""
        return contextlib.nullcontext() if self._network is None else self._network.inside()

    def end(self) -> None:
        """End every process of this Windows, and the server behind them."""
        assert self._keeper.stdin
        self._keeper.stdin.close()
        try:
            with contextlib.suppress(subprocess.CalledProcessError):  # it has ended already
                self._complete(SERVER, "--kill")
        finally:
            kill(having("WINEPREFIX", str(self._prefix)))
            self._keeper.wait(END)
            if self._network is not None:
                self._network.close()

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
            env={**self._environment(**settings), MARK: mark},
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
