"""Try what a confined process must not be able to do, and print what became of each attempt.

    python -IS attempts.py FOLDER…

Prints one JSON object: the name of each attempt, and the error's name (`EPERM`), or `done`. The folders are those in
which the process may write. Each attempt would do no harm if it were done: it names nothing that exists, or gives back
what it took.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_SECCOMP = ctypes.CDLL("libseccomp.so.2")
_PTRACE_SEIZE, _PTRACE_ATTACH = 0x4206, 16
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x20000
_NO_FILE = -1
_CALLS: dict[str, tuple[Any, ...]] = {
    "open a file by its handle": ("open_by_handle_at", _NO_FILE, 0, 0),
    "load a module": ("finit_module", _NO_FILE, b"", 0),
    "unload a module": ("delete_module", b"imdsproxy-none", 0),
    "load another kernel": ("kexec_load", 0, 0, 0, 0),
    "load a BPF program": ("bpf", 5, 0, 0),
    "set the clock": ("clock_settime", 0, 0),
    "adjust the clock": ("settimeofday", 0, 0),
    "restart the machine": ("reboot", 0, 0, 0, 0),
    "swap to a file": ("swapon", b"/imdsproxy-none", 0),
    "account processes": ("acct", b"/imdsproxy-none"),
    "change the root": ("chroot", b"/"),
    "exchange the root": ("pivot_root", b"/", b"/"),
    "mount": ("mount", b"none", b"/mnt", b"tmpfs", 0, 0),
    "unmount": ("umount2", b"/", 2),
    "name the machine": ("sethostname", b"x", 1),
    "a namespace of mounts": ("unshare", _CLONE_NEWNS),
    "a namespace of users": ("unshare", _CLONE_NEWUSER),
    "enter a namespace": ("setns", _NO_FILE, 0),
    "ports of the processor": ("iopl", 3),
    "count the processor's events": ("perf_event_open", 0, 0, -1, -1, 0),
    "handle page faults": ("userfaultfd", 0),
    "read the kernel's log": ("syslog", 3, 0, 0),
    "a keyring": ("keyctl", 0, -3, 0, 0, 0),
    "a key": ("add_key", b"user", b"imdsproxy-none", b"x", 1, -2),
    "asynchronous input": ("io_uring_setup", 1, 0),
    "keep memory from swap": ("mlockall", 1),
    "watch all files": ("fanotify_init", 0, 0),
}
"""System calls of their own, with arguments that do nothing."""


def attempts(writable: list[str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each attempt by its name."""
    for name, arguments in _CALLS.items():
        yield name, partial(_system_call, *arguments)
    yield "trace the first process", lambda: _system_call("ptrace", _PTRACE_SEIZE, 1, 0, 0)
    yield "trace a child", _trace_a_child
    yield "signal the first process", lambda: os.kill(1, 0)
    yield "see another process", lambda: Path("/proc/1/cmdline").read_bytes()
    yield "become root", lambda: os.setuid(0)
    yield "become root's group", lambda: os.setgid(0)
    yield "choose groups", lambda: os.setgroups([0])
    yield "a raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    yield "a socket of packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    yield "listen at port 80", lambda: socket.create_server(("127.0.0.1", 80)).close()
    yield "memory to write and execute", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    yield "a higher priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5)
    yield "real time", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    yield "more core dumps", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    yield "a program that changes the user", lambda: Path(_new_file(writable[0])).chmod(0o4755)
    yield "a device", lambda: os.mknod(f"{writable[0]}/device", 0o60600, os.makedev(8, 0))
    yield "give a file away", lambda: os.chown(_new_file(writable[0]), 0, 0)
    for folder in (
        "/",
        "/etc",
        "/usr",
        "/opt",
        "/var",
        "/root",
        "/home",
        "/run",
        "/boot",
        "/dev/shm",
        "/proc/sys/kernel",
        "/sys",
    ):
        yield f"write to {folder}", partial(_write, folder)
    yield "write to this program", lambda: os.close(os.open(__file__, os.O_WRONLY))
    yield "set a value of the kernel", lambda: os.close(os.open("/proc/sys/kernel/hostname", os.O_WRONLY))
    for number, folder in enumerate(writable):
        yield f"write to the given folder {number}", partial(_write, folder)


def _system_call(name: str, *arguments: int | bytes) -> None:
    number = _SECCOMP.seccomp_syscall_resolve_name(name.encode())
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    ctypes.set_errno(0)
    if _LIBC.syscall(ctypes.c_long(number), *converted) < 0:
        raise OSError(ctypes.get_errno(), name)


def _trace_a_child() -> None:
    child = os.fork()
    if child == 0:
        os.read(0, 1)
        os._exit(0)
    try:
        _system_call("ptrace", _PTRACE_ATTACH, child, 0, 0)
        os.waitpid(child, 0)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def _new_file(folder: str) -> str:
    path = f"{folder}/file"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    return path


def _write(folder: str) -> None:
    path = f"{folder}/imdsproxy-was-here"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    Path(path).unlink()


def outcome(attempt: Callable[[], object]) -> str:
    """Return what becomes of an attempt in a process of its own, which it cannot change for those after it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = "done"
        try:
            attempt()
        except OSError as error:
            told = errno.errorcode.get(error.errno or 0, str(error))
        except ValueError as error:
            told = str(error)
        finally:
            os.write(write, told.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


def main(writable: list[str]) -> None:
    """Try everything, and print the outcomes."""
    sys.stdout.write(json.dumps({name: outcome(attempt) for name, attempt in attempts(writable)}))


if __name__ == "__main__":
    main(sys.argv[1:])
