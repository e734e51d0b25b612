"""Processes forked from one that has imported already what they need.

Starting the proxy takes about half a second of the processor, and a client with its library one or two; nearly all of
that is imports, and the tests start hundreds of each. A forked process is the same program, with an environment, files,
a command line and an exit status of its own. A test whose subject is the start itself, memory in absolute figures, or
a command around the program starts an interpreter instead.

`python -m tests.forkserver FD IMPORT…` is the server: it imports, then forks for each message that comes in at the
descriptor FD, and ends with the process that holds the other end.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from tests.kernel import CLONE_NEWNET, call, children_in_a_new_process_namespace
from tests.size import LONG

AVAILABLE = hasattr(os, "fork") and not LONG
"""Long runs measure the coverage of every process, and that begins with an interpreter."""

_LATE = (
    *("httpcore", "anyio._backends._asyncio", "uvicorn.lifespan.on", "uvicorn.loops.auto", "encodings.idna"),
    *(("imdsproxy.peers.linux_sockets",) if sys.platform == "linux" else ()),
    *(("uvicorn.loops.uvloop",) if importlib.util.find_spec("uvloop") else ()),
)
"""What a proxy imports late, with its first request: two thirds of the time of its start, once the rest is imported."""
_ROOT = Path(__file__).resolve().parent.parent
_MESSAGE = 1 << 20
_STATUS = 4
_ANSWER = 120.0  # seconds; the server imports before it answers the first time
_END = 60.0  # seconds
_STREAMS = 3
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522


class Forkserver:
    """A process that imports modules once and forks for each start."""

    def __init__(self, imports: Sequence[str]) -> None:
        """Start the server; it imports while this process goes on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.forkserver", str(theirs.fileno()), *imports],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
            )
        self._channel = ours
        self._channel.settimeout(_ANSWER)
        self._one_at_a_time = threading.Lock()
        atexit.register(self._end)

    def start(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        env: Mapping[str, str],
        user: int = 0,
        network: int | None = None,
        container: Mapping[str, Any] | None = None,
        stdin: IO[Any] | int = subprocess.DEVNULL,
        stdout: IO[Any] | int = subprocess.DEVNULL,
        stderr: IO[Any] | int = subprocess.DEVNULL,
    ) -> ForkedProcess:
        """Run a module's `main()`, as `python -m module arguments` would, in the checkout.

        Args:
            module: A module with `main()`, which returns an exit status or None.
            arguments: The rest of `sys.argv`.
            env: The whole environment.
            user: The user and group to become, which takes root; 0 stays what this process is.
            network: The descriptor of a network namespace to enter, which takes root; else that of the server.
            container: What `tests.system.container_setup.enter` makes of the process, its user included.
            stdin: A file, `subprocess.PIPE` or `subprocess.DEVNULL`, as for `subprocess.Popen`; text with PIPE.
            stdout: The same.
            stderr: The same.
        """
        with contextlib.ExitStack() as passed:
            pipes: list[IO[str] | None] = []
            files = []
            for number, wanted in enumerate((stdin, stdout, stderr)):
                ours, theirs = _stream(wanted, reads=number == 0)
                if theirs is not None:
                    passed.callback(os.close, theirs)
                pipes.append(ours)
                files.append(_number(wanted) if theirs is None else theirs)
            status, reports = os.pipe()
            passed.callback(os.close, reports)
            files += [reports] if network is None else [network, reports]
            order = {"module": module, "arguments": list(arguments), "env": dict(env), "user": user}
            order["container"] = container and dict(container)
            pid = self._ordered(order, files)
        assert pid, "the fork server has ended"
        return ForkedProcess(int.from_bytes(pid, "little"), status, pipes)

    def _ordered(self, order: Mapping[str, Any], files: Sequence[int]) -> bytes:
        with self._one_at_a_time:
            try:
                socket.send_fds(self._channel, [json.dumps(order).encode()], files)
                return self._channel.recv(_STATUS)
            except TimeoutError:
                self._channel.close()  # an answer that came late would be taken for that to the next order
                raise AssertionError(
                    f"the fork server has not started {order['module']} within {_ANSWER:g} s"
                ) from None

    def _end(self) -> None:
        self._channel.close()
        try:
            self._server.wait(_END)
        except subprocess.TimeoutExpired:
            self._server.kill()
            raise


class ForkedProcess:
    """A running process, with the part of `subprocess.Popen` that the tests use."""

    def __init__(self, pid: int, status: int, pipes: Sequence[IO[str] | None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """The exit status, or the negative number of the signal that ended it; None until the end is known."""
        self.stdin, self.stdout, self.stderr = pipes
        self._status = status

    def poll(self) -> int | None:
        """Return `returncode`, which is None while the process runs."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return `returncode`; TimeoutExpired if it has not ended within `timeout` seconds."""
        status = self._ended_within(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Close the input, and return what came to the pipes of output and error by the end, as `wait` waits for it."""
        if self.stdin:
            self.stdin.close()
        readers = [_Reader(pipe) for pipe in (self.stdout, self.stderr)]
        self.wait(timeout)
        return readers[0].text(), readers[1].text()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _ended_within(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            wanted = select.poll()
            wanted.register(self._status, select.POLLIN)
            if wanted.poll(None if seconds is None else seconds * 1000):
                told = os.read(self._status, _STATUS)
                os.close(self._status)
                assert told, "the fork server has ended"
                self.returncode = os.waitstatus_to_exitcode(int.from_bytes(told, "little"))
        return self.returncode


class _Reader(threading.Thread):
    """Read a pipe to its end."""

    def __init__(self, pipe: IO[str] | None) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._text = ""
        self.start()

    def run(self) -> None:
        if self._pipe and not self._pipe.closed:
            with self._pipe:
                self._text = self._pipe.read()

    def text(self) -> str:
        self.join(_END)
        assert not self.is_alive(), f"the process has ended, but others have held its output open for {_END:g} s"
        return self._text


@functools.cache
def of_proxies() -> Forkserver:
    """Return the server that has imported the proxy and the emulator."""
    return Forkserver(
        ["imdsproxy.__main__", "imdsproxy.cli.serve", "imdsproxy.settings.load", "imdsproxy.emulator.__main__", *_LATE]
    )


@functools.cache
def of_clients() -> Forkserver:
    """Return the server that has imported the client of the system tests' hosts, and hardly anything else."""
    return Forkserver(["tests.system.client", "encodings.idna"])


@functools.cache
def of_checks() -> Forkserver:
    """Return the server that has imported the checks of a machine."""
    return Forkserver(["imdsproxy.__main__", "imdsproxy.cli.check.command"])


def _stream(wanted: IO[Any] | int, *, reads: bool) -> tuple[IO[str] | None, int | None]:
    """Return this process's end of a stream, and a descriptor for the other process that is to be closed here."""
    if wanted == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    if wanted != subprocess.PIPE:
        return None, None
    read, write = os.pipe()
    if reads:
        return os.fdopen(write, "w", encoding="utf-8"), read
    return os.fdopen(read, encoding="utf-8"), write


def _number(file: IO[Any] | int) -> int:
    return file if isinstance(file, int) else file.fileno()


def _serve(channel: socket.socket) -> None:
    """Fork for each message, until the other end is closed."""
    reports: dict[int, int] = {}
    woken, waker = _woken_by_children()
    while True:
        ready, _, _ = select.select([channel, woken], [], [])
        if woken in ready:
            woken.recv(_MESSAGE)
            _reap(reports)
        if channel not in ready:
            continue
        message, files, _, _ = socket.recv_fds(channel, _MESSAGE, 5)
        if not message:
            return
        order = json.loads(message)
        server = os.getpid()
        with children_in_a_new_process_namespace() if order["container"] else contextlib.nullcontext() as before:
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for ours in (channel, woken, waker):
                    ours.close()
                for file in (*reports.values(), files.pop(), *([before] if before else [])):
                    os.close(file)
                _become(order, files, server)
        *given, reports[pid] = files
        for file in given:
            os.close(file)
        channel.send(pid.to_bytes(_STATUS, "little"))


def _woken_by_children() -> tuple[socket.socket, socket.socket]:
    """Return a socket that can be read once a child has ended, and its other end, which has to stay open.

    A handler that reports the end itself would run only after the next message, if the signal came just before the
    wait for that.
    """
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.settimeout(0)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    return woken, waker


def _reap(reports: dict[int, int]) -> None:
    """Report the exit statuses of the children that have ended."""
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        report = reports.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(report, status.to_bytes(_STATUS, "little"))
        os.close(report)


def _become(order: Mapping[str, Any], files: Sequence[int], server: int) -> NoReturn:
    """Be the process that was asked for: what an interpreter does before and after a program."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files[:_STREAMS]):
        os.dup2(file, number)
        os.close(file)
    # The server's own know what its descriptors were: whether they could seek, and whether they were a terminal.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    for network in files[_STREAMS:]:
        call("setns", network, CLONE_NEWNET)
        os.close(network)
    if order["container"]:
        from tests.system import container_setup  # noqa: PLC0415  # most servers start none

        container_setup.enter({**order["container"], "parent": server})
        container_setup.hold_what_an_execution_leaves(order["container"])
    elif order["user"]:
        _become_user(order["user"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = [order["module"], *order["arguments"]]
    status = 1
    try:
        status = _exit_status(importlib.import_module(order["module"]).main)
    except BaseException:  # noqa: BLE001  # as an interpreter prints what nothing caught
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # what an interpreter calls at its end
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _become_user(user: int) -> None:
    """Become that user and group, who may read every file: the interpreter may lie in a home directory."""
    call("prctl", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    reads = 1 << _CAP_DAC_READ_SEARCH
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    call("capset", header, struct.pack("=6I", reads, reads, reads, 0, 0, 0))
    # A change of user takes away a process's own /proc (prctl(2)); a command that was started by the user has it.
    call("prctl", _PR_SET_DUMPABLE, 1)


def _exit_status(main: Any) -> int:
    try:
        status = main()
    except SystemExit as error:
        status = error.code
    if isinstance(status, int | None):
        return status or 0
    sys.stderr.write(f"{status}\n")
    return 1


if __name__ == "__main__":
    _channel = socket.socket(fileno=int(sys.argv[1]))
    for _name in sys.argv[2:]:
        importlib.import_module(_name)
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy every page
    _serve(_channel)
