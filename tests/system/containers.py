"""Run a command as a container runtime would, on a host of `hosts.py`.

    root = Path("/")  # the machine's own files and this checkout, or the unpacked files of an image
    mounts = [Mount(tmp_path / "run", "/run/imdsproxy"), Mount(tmp_path / "config", "/etc/config", read_only=True)]
    with Host("node") as node:
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
        with contained(node, sys.executable, "-m", "imdsproxy", env=env, mounts=mounts, log=log) as process: ...
        done = run_contained(node, "/bin/true", env=env, user=0, capabilities=["net_admin"])

The command is process 1 of a namespace of its own: a signal that it handles in no way does not end it, as in any
container. `env` is its whole environment. Every file is read-only but what `mounts` makes writable; targets that do not
exist are made, and leave nothing behind. /proc, /sys (read-only, and /proc/sys with it) and a small /dev are its own.
It has no capability but those named, no descriptor but the standard ones, and can gain nothing by executing
(no_new_privs). To a user other than root, named capabilities are there to be granted by a file's own capabilities and
in no other way, as in Docker and Kubernetes; with the machine's own files alone, such a user may read all of them,
since checkout and interpreter may lie in somebody's home directory.

Network, users and the kernel are those of the host and the machine: there is no user namespace, cgroup or seccomp.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypedDict, Unpack

from tests import forkserver
from tests.forkserver import ForkedProcess
from tests.kernel import children_in_a_new_process_namespace
from tests.kit import ROOT
from tests.system.hosts import Host, _end

USER = 65532
_SETUP = ROOT / "tests" / "system" / "container_setup.py"


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine, and where it appears in the container."""

    source: Path
    target: str
    read_only: bool = False


class Options(TypedDict, total=False):
    """What a container may have besides its command and its environment; `_setup` has the defaults."""

    root: Path
    user: int
    group: int
    groups: Sequence[int]
    mounts: Sequence[Mount]
    capabilities: Sequence[str]
    workdir: str


@contextlib.contextmanager
def contained(
    host: Host, *command: str, env: Mapping[str, str], log: Path | None = None, **options: Unpack[Options]
) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the background, its output going to `log`; ended on the way out, hard after 15 seconds.

    The process is the command itself. Its status is 125 if the container could not be made, 127 if there is no such
    command; `log` says why.
    """
    with contextlib.ExitStack() as stack:
        output: int | IO[str] = subprocess.DEVNULL
        if log:
            output = stack.enter_context(log.open("w", encoding="utf-8"))
        process = _start(host, _setup(host, command, env, **options), output, output)
        try:
            yield process
        finally:
            _end(process)


@contextlib.contextmanager
def contained_module(
    host: Host, module: str, *arguments: str, env: Mapping[str, str], log: Path, **options: Unpack[Options]
) -> Iterator[ForkedProcess]:
    """Run `main()` of a module of the proxy's as `contained` runs a command, in a process that is forked.

    The container is the same, and so is what the process may do in it, but nothing is executed. The files are the
    machine's own. Needs `forkserver.AVAILABLE`.
    """
    with log.open("w", encoding="utf-8") as output:
        process = forkserver.of_proxies().start(
            module,
            arguments,
            env=env,
            network=host.descriptor,
            container=_setup(host, (), env, **options),
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        _end(process)


def run_contained(
    host: Host, *command: str, env: Mapping[str, str], timeout: float = 30, **options: Unpack[Options]
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output as text, for any status. TimeoutExpired after `timeout` s."""
    with _start(host, _setup(host, command, env, **options), subprocess.PIPE, subprocess.PIPE) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            if process.poll() is None:
                process.kill()
    return subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)


def _setup(
    host: Host,
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    root: Path = Path("/"),
    user: int = USER,
    group: int = USER,
    groups: Sequence[int] = (),
    mounts: Sequence[Mount] = (),
    capabilities: Sequence[str] = (),
    workdir: str = "/",
) -> dict[str, object]:
    machine = root.resolve() == Path("/")
    return {
        "command": list(command),
        "root": str(root.resolve()),
        "env": dict(env),
        "user": user,
        "group": group,
        "groups": list(groups),
        "mounts": [[str(mount.source.resolve()), mount.target, mount.read_only] for mount in mounts],
        "capabilities": [name.lower().removeprefix("cap_") for name in capabilities],
        "ambient": ["dac_read_search"] if machine and user != 0 else [],
        "workdir": workdir,
        "name": host.name,
        "parent": os.getpid(),
    }


def _start(host: Host, setup: dict[str, object], stdout: int | IO[str], stderr: int | IO[str]) -> subprocess.Popen[str]:
    with host.inside(), children_in_a_new_process_namespace():
        return subprocess.Popen(
            [sys.executable, "-IS", str(_SETUP), json.dumps(setup)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
