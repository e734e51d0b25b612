"""The memory of a serving process, in which access tokens are: no core dump of it, and nothing of it for others."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imdsproxy.emulator import EmulatorServer
from tests import forkserver
from tests.kit import environment, get, wait_until
from tests.targets import TOKEN

pytestmark = [
    pytest.mark.process,
    pytest.mark.any_python,
    pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's"),
]
USER = 65533
WITHOUT_LIMIT = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def start(folder: Path, imds: EmulatorServer) -> subprocess.Popen[bytes]:
    """Start a proxy in a folder, and let it take a token into its memory."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "imdsproxy"],
        env=environment(port=0, upstream=imds.url),
        cwd=folder,
        stderr=write,
    )
    os.close(write)
    with os.fdopen(read) as log:
        port = next(int(line.rpartition("127.0.0.1:")[2].split()[0]) for line in log if "listening" in line)
        wait_until(lambda: get(port, TOKEN).status == 200)
    return process


def ended_by(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal that ends a process, and return whether the kernel dumped its memory."""
    os.kill(process.pid, number)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -number
    assert os.WTERMSIG(status) == number
    return os.WCOREDUMP(status)


@pytest.fixture
def _dumps(tmp_path: Path) -> None:
    """Skip where the kernel dumps no process at all: there the tests would show nothing."""
    code = "import os, resource, signal\nresource.setrlimit(resource.RLIMIT_CORE, (-1, -1))\nsignal.pause()"
    try:
        process = subprocess.Popen([sys.executable, "-ISc", code], cwd=tmp_path)
        wait_until(lambda: resource.prlimit(process.pid, resource.RLIMIT_CORE) == WITHOUT_LIMIT, 5)
    except AssertionError:
        process.kill()
        pytest.skip("no core dump of any process: the hard limit forbids it")
    if not ended_by(process, signal.SIGABRT):
        pytest.skip("no core dump of any process: the kernel writes none")
    for core in tmp_path.glob("core*"):
        core.unlink()


@pytest.mark.usefixtures("_dumps")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_crash_leaves_no_core_dump(tmp_path: Path, imds: EmulatorServer, number: int) -> None:
    process = start(tmp_path, imds)
    try:
        assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
        # As for a program in kernel.core_pattern, which the limit does not keep from the memory.
        with contextlib.suppress(PermissionError):  # it takes CAP_SYS_RESOURCE
            resource.prlimit(process.pid, resource.RLIMIT_CORE, WITHOUT_LIMIT)
        assert not ended_by(process, number)
        assert list(tmp_path.glob("core*")) == []
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may start a process of another user")
def test_memory_of_the_proxy_is_closed_to_other_processes_of_its_user(tmp_path: Path, imds: EmulatorServer) -> None:
    """The files below /proc/PID that show memory belong to root if a process is not dumpable (proc(5))."""
    ordinary = subprocess.Popen(["sleep", "60"], user=USER)
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as stderr:
        env = environment(port=0, upstream=imds.url)
        process = forkserver.of_proxies().start("imdsproxy.__main__", env=env, user=USER, stderr=stderr)
    try:
        wait_until(lambda: "listening" in log.read_text(encoding="utf-8"))
        owners = [Path(f"/proc/{each.pid}/environ").stat().st_uid for each in (ordinary, process)]
        assert owners == [USER, 0]
        assert get(int(log.read_text(encoding="utf-8").rpartition("127.0.0.1:")[2].split()[0]), TOKEN).status == 200
    finally:
        for each in (ordinary, process):
            each.kill()
            each.wait()
