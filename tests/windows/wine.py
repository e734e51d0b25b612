"""Windows under Wine: its processes, their output and their arguments."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.kit import ROOT, wait_until

PREPARED = ROOT / ".debian" / "windows"
WINE = Path("/usr/lib/wine/wine64")
SERVER = Path("/usr/lib/wine/wineserver64")
_CONSOLE = Path(__file__).with_name("console.py")
_START = 60.0
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


class Process:
    """A Windows process that runs, with the lines it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
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
        """Wait for a line with these words, and return it."""
        wait_until(lambda: words in self.text or self.process.poll() is not None, _START)
        lines = [line for line in (*self.out, *self.error) if words in line]
        assert lines, self.text
        return lines[0]

    def port(self, words: str = " listening ") -> int:
        """Wait for the line that says where the process listens, and return its port."""
        return int(self.wait_for(words).partition("http://127.0.0.1:")[2].split()[0])

    def ended(self) -> int:
        """Wait for the end, and return the exit status."""
        status = self.process.wait(_START)
        for reader in self._readers:
            reader.join(_START)
        return status

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
        subprocess.run(["cp", "--archive", "--link", prefix, self._prefix], check=True)
        for file in self._prefix.iterdir():
            if file.is_file() and not file.is_symlink():
                file.unlink()
                shutil.copy2(prefix / file.name, file)
        self._python = python / "python.exe"
        self._path = ";".join(map(windows_path, (python / "packages", ROOT)))
        subprocess.run([SERVER, "--persistent=60"], env=self._environment(), check=True)
        # The first process brings Windows' own with it, which keep what they inherit: the null device, not a pipe.
        nothing = subprocess.DEVNULL
        subprocess.run(
            [WINE, "wineboot"], env=self._environment(), stdin=nothing, stdout=nothing, stderr=nothing, check=True
        )

    def end(self) -> None:
        """End every process of this Windows, and the server behind them."""
        subprocess.run([SERVER, "--kill"], env=self._environment(), check=False)

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
        """Run Windows' Python; its process is killed at the end unless it has ended."""
        with subprocess.Popen(
            [WINE, self._python, *arguments],
            env=self._environment(**settings),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            running = Process(process)
            try:
                yield running
            finally:
                if process.poll() is None:
                    process.kill()
                running.ended()

    @contextlib.contextmanager
    def proxy(self, *arguments: str, **settings: object) -> Iterator[Process]:
        """Run the proxy on a free port, or another of the program's commands."""
        with self.python("-m", "imdsproxy", *arguments, **{"port": 0, **settings}) as process:
            yield process

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
        }
