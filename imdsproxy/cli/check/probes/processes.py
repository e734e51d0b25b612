"""The processes of this machine, from /proc (proc(5)); what this user may not see is left out."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imdsproxy.cli.check.facts import Process

_SOCKET = re.compile(r"socket:\[(\d+)\]")
_NAME_LENGTH = 15  # what the kernel keeps of a process's name (TASK_COMM_LEN)
AGENTS = ("azure-proxy-agent", "GuestProxyAgent")
"""The Metadata Security Protocol's agent on Linux and on Windows (github.com/Azure/GuestProxyAgent)."""
_EBPF_LABEL = "kubernetes.azure.com/ebpf-host-routing=true"


@dataclass
class Seen:
    """What one walk through /proc has found."""

    by_socket: dict[int, list[Process]] = field(default_factory=dict)
    """Processes by the inode of a socket that they have open."""
    by_file: list[Process] = field(default_factory=list)
    """Processes that have the wanted file open."""
    kubelet: bool = False
    kube_proxy: bool = False
    ebpf_label: bool = False
    agent: Process | None = None


def look_at_processes(file: Path | None = None, proc: Path = Path("/proc")) -> Seen:
    """Walk through the processes once.

    Args:
        file: A file whose users are wanted.
        proc: Where the kernel shows its processes.
    """
    seen = Seen()
    wanted = None
    if file is not None:
        with contextlib.suppress(OSError):
            wanted = file.stat()
    for folder in proc.iterdir() if proc.is_dir() else ():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has just ended
                _look_at(folder, wanted, file, seen)
    return seen


def _look_at(folder: Path, wanted: os.stat_result | None, file: Path | None, seen: Seen) -> None:
    name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
    process = Process(int(folder.name), folder.stat().st_uid, name)
    if name in {agent[:_NAME_LENGTH] for agent in AGENTS}:
        seen.agent = process
    if name == "kube-proxy":
        seen.kube_proxy = True
    if name == "kubelet":
        seen.kubelet = True
        with contextlib.suppress(OSError):
            seen.ebpf_label |= _EBPF_LABEL in (folder / "cmdline").read_text(encoding="utf-8", errors="replace")
    for descriptor in _open_files(folder):
        target = str(descriptor.readlink())
        if match := _SOCKET.fullmatch(target):
            seen.by_socket.setdefault(int(match[1]), []).append(process)
        elif _is(wanted, file, descriptor, target) and process not in seen.by_file:
            seen.by_file.append(process)


def _is(wanted: os.stat_result | None, file: Path | None, descriptor: Path, target: str) -> bool:
    """Return whether a descriptor is the wanted file.

    Names are compared first, because a network file system that does not answer would block the look at its file.
    """
    if wanted is None or file is None or Path(target).name != file.name:
        return False
    return os.path.samestat(wanted, descriptor.stat())


def _open_files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # another user's, or it has just ended
        yield from (folder / "fd").iterdir()
