"""Run a command as a unit would confine it, as far as possible without systemd as the first process.

    python confined.py SPECIFICATION
    python confined.py --profile PROFILE COMMAND…

The specification is a JSON file: the `Confinement` of a unit, as `test_units` makes it. Carried over are
ProtectSystem=strict with ReadWritePaths=, PrivateTmp=, ProtectProc=, UMask=, User=, CapabilityBoundingSet=,
InaccessiblePaths=, AmbientCapabilities=, NoNewPrivileges=, LimitCORE=0, MemoryDenyWriteExecute=, SystemCallFilter=,
RestrictAddressFamilies=, RestrictNamespaces= and RestrictSUIDSGID=, the last five in the kernel as systemd does it
(prctl(2), seccomp(2)). A system call that is neither allowed nor known to
be done without ends the process, where the unit would have it fail: so nothing can be missing unnoticed. With `fails`
it fails as in the unit.

Run as root; the command runs as the specification's user. Files below `/run` are the command's own: it finds nothing
there but the folders of ReadWritePaths=, new and its user's.

The second form only loads a seccomp profile of containers, in the form of Docker's, for a process without capabilities,
and becomes the command.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIBSECCOMP = "libseccomp.so.2"
_LIBC = ctypes.CDLL(None, use_errno=True)
_SECOND_TURN = "CONFINEMENT"
_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_MDWE, _REFUSE_EXEC_GAIN = 65, 1
# Of libseccomp's header: what becomes of a call, and how an argument is compared.
_KILL, _FAIL, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EQUAL, _AT_LEAST, _MASKED = 4, 5, 7
_COMPARISONS = {"SCMP_CMP_NE": 1, "SCMP_CMP_EQ": _EQUAL, "SCMP_CMP_MASKED_EQ": _MASKED}
_NAMESPACES = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*
_SETS_USER_OR_GROUP = (0o4000, 0o2000)
_ADDRESS_FAMILIES = 64  # more than Linux has
_FORBIDDEN_BITS = (
    ("unshare", 0, _NAMESPACES),
    ("clone", 0, _NAMESPACES),
    ("setns", 1, _NAMESPACES),
    ("chmod", 1, _SETS_USER_OR_GROUP),
    ("fchmod", 1, _SETS_USER_OR_GROUP),
    ("fchmodat", 2, _SETS_USER_OR_GROUP),
)
"""System calls, the argument that has bits, and bits that may not be set."""


class _Argument(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (
        ("number", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Confinement:
    """What is carried over of a unit."""

    command: list[str]
    user: int
    capabilities: list[str]
    """Those that the process has, and may ever have; named as in setpriv(1)."""
    writable: list[str]
    calls: list[str]
    """The system calls that are allowed."""
    families: list[str]
    umask: int
    refused: list[str]
    """The system calls that the command tries and does without; they fail as in the unit."""
    inaccessible: list[str]
    fails: bool = False
    """Whether every call that is not allowed fails, rather than end the process."""

    def write(self, path: Path) -> str:
        """Write the specification to a file, and return its path."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return str(path)


def main(specification: str) -> None:
    """Confine this process, then become the command. Takes two turns: the second is that of the command's user."""
    text = os.environ.pop(_SECOND_TURN, "") or Path(specification).read_text(encoding="utf-8")
    it = Confinement(**json.loads(text))
    if os.getuid() == it.user:
        _confine(it)
        os.execvp(it.command[0], it.command)
    _private_files(it)
    os.environ[_SECOND_TURN] = text  # the file is out of sight now
    all_of_them = ",".join(["-all", *(f"+{name}" for name in it.capabilities)])
    user = [f"--reuid={it.user}", f"--regid={it.user}", "--clear-groups"]
    capabilities = [f"--bounding-set={all_of_them}", f"--inh-caps={all_of_them}", f"--ambient-caps={all_of_them}"]
    again = [sys.executable, "-IS", __file__, specification]
    os.execvp("setpriv", ["setpriv", "--pdeathsig=KILL", *user, *capabilities, *again])


def _private_files(it: Confinement) -> None:
    _call("unshare", _CLONE_NEWNS)
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", options="hidepid=invisible")
    _mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV)
    # A checkout there would not be found any more.
    if not any(path.startswith("/tmp/") for path in (__file__, sys.prefix, sys.base_prefix)):
        _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV)
    for folder in it.writable:
        Path(folder).mkdir(0o750, parents=True)
        os.chown(folder, it.user, it.user)
        _mount(folder, folder, "", _MS_BIND)
    for place in filter(os.path.exists, it.inaccessible):
        _mount("tmpfs", place, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "mode=000")
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    for point in {point.encode().decode("unicode_escape") for point in mounted} - {"/tmp"}:
        # What was mounted below /run and /tmp is out of sight.
        if not point.startswith(("/dev", "/proc", "/sys", "/run/", "/tmp/")):
            _mount("none", point, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _confine(it: Confinement) -> None:
    os.umask(it.umask)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0)
    seccomp = ctypes.CDLL(LIBSECCOMP)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    families = {int(getattr(socket, name)) for name in it.families}
    others = [_Argument(0, _EQUAL, family, 0) for family in range(_ADDRESS_FAMILIES) if family not in families]
    others.append(_Argument(0, _AT_LEAST, _ADDRESS_FAMILIES, 0))
    otherwise = _FAIL | errno.EPERM if it.fails else _KILL
    sockets = _filter(seccomp, _ALLOW)
    for other in others:
        number = seccomp.seccomp_syscall_resolve_name(b"socket")
        _done(seccomp.seccomp_rule_add_array(sockets, ctypes.c_uint32(otherwise), number, 1, ctypes.byref(other)))
    bits = _filter(seccomp, _ALLOW)
    for name, number, masks in _FORBIDDEN_BITS:
        for mask in masks:
            _forbid(seccomp, bits, name, _Argument(number, _MASKED, mask, mask))
    _forbid(seccomp, bits, "setns", _Argument(1, _EQUAL, 0, 0))  # a namespace of any kind
    # Its flags are in memory, which a filter cannot read; the C library then uses clone(2).
    number = seccomp.seccomp_syscall_resolve_name(b"clone3")
    _done(seccomp.seccomp_rule_add_array(bits, ctypes.c_uint32(_FAIL | errno.ENOSYS), number, 0, None))
    calls = _filter(seccomp, otherwise)
    rules = [(_ALLOW, it.calls)] if it.fails else [(_ALLOW, it.calls), (_FAIL | errno.EPERM, it.refused)]
    for action, names in rules:
        for name in names:
            number = seccomp.seccomp_syscall_resolve_name(name.encode())
            if number >= 0:  # this processor has it
                _done(seccomp.seccomp_rule_add_array(calls, ctypes.c_uint32(action), number, 0, None))
    # The one that would forbid to load another has to be the last.
    for one in (sockets, bits, calls):
        _done(seccomp.seccomp_load(one))


def _apply_profile(path: str) -> None:
    profile = json.loads(Path(path).read_text(encoding="utf-8"))
    seccomp = ctypes.CDLL(LIBSECCOMP)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = _filter(seccomp, _FAIL | profile["defaultErrnoRet"])
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    for each in profile["syscalls"]:
        needs = each.get("includes") or {}
        if needs.get("caps") or machine not in needs.get("arches", [machine]):
            continue
        action = ctypes.c_uint32(_ALLOW if each["action"] == "SCMP_ACT_ALLOW" else _FAIL | each.get("errnoRet", 1))
        given = [_argument(one) for one in each["args"] or ()]
        for name in each["names"]:
            number = seccomp.seccomp_syscall_resolve_name(name.encode())
            if number >= 0:
                array = (_Argument * len(given))(*given)
                _done(seccomp.seccomp_rule_add_array(rules, action, number, len(given), array))
    _done(seccomp.seccomp_load(rules))


def _argument(one: dict[str, Any]) -> _Argument:
    return _Argument(one["index"], _COMPARISONS[one["op"]], one["value"], one["valueTwo"])


def _forbid(seccomp: ctypes.CDLL, rules: ctypes.c_void_p, name: str, argument: _Argument) -> None:
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    action = ctypes.c_uint32(_FAIL | errno.EPERM)
    _done(seccomp.seccomp_rule_add_array(rules, action, number, 1, ctypes.byref(argument)))


def _filter(seccomp: ctypes.CDLL, otherwise: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(otherwise)))


def _mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    arguments = (
        source.encode(),
        target.encode(),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _call("mount", *arguments)


def _call(name: str, *arguments: object) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def _done(status: int) -> None:
    if status != 0:
        raise OSError(-status, f"libseccomp: {os.strerror(-status)}")


if __name__ == "__main__":
    if sys.argv[1] == "--profile":
        _apply_profile(sys.argv[2])
        os.execvp(sys.argv[3], sys.argv[3:])
    main(*sys.argv[1:])
