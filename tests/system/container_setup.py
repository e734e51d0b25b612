"""Turn the own process into a container's, as `containers.py` requests, and execute the command.

Runs by itself, as process 1 of a namespace: python -IS container_setup.py JSON. Needs Linux 5.12 or newer.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

_NO_CONTAINER = 125
_NO_COMMAND = 127

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000

_MS_RDONLY = 0x1
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_NOEXEC = 0x8
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_QUIET = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_MNT_DETACH = 0x2
_MOUNT_SETATTR = 442  # on every architecture; before glibc 2.36 there is no function of this name
_MOUNT_ATTR_RDONLY = 0x1
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522

_CAPABILITIES = {  # as <linux/capability.h> numbers them; those that a test had a use for
    "chown": 0,
    "dac_override": 1,
    "dac_read_search": 2,
    "setgid": 6,
    "setuid": 7,
    "net_bind_service": 10,
    "net_admin": 12,
    "net_raw": 13,
    "sys_admin": 21,
}
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Become the container's first process; the status says which part of it could not be done."""
    wish: dict[str, Any] = json.loads(sys.argv[1])
    command: list[str] = wish["command"]
    enter(wish)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python has it ignored, and what is ignored stays so
    try:
        os.execvpe(command[0], command, wish["env"])
    except OSError as error:
        _leave(_NO_COMMAND, f"{command[0]}: {error.strerror}")


def enter(wish: dict[str, Any]) -> None:
    """Make this process, the first of a namespace, the container's; it ends with its status if that cannot be done."""
    try:
        # Seen from in here the parent is always 0, so it is looked for in the /proc of outside.
        with Path("/proc/self/status").open(encoding="ascii") as status:
            os.setsid()
            _call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC)
            socket.sethostname(wish["name"])
            _lay_files(Path(wish["root"]), [_Mount(*one) for one in wish["mounts"]])
            os.chdir(wish["workdir"])
            _become(wish["user"], wish["group"], wish["groups"], wish["capabilities"], wish["ambient"])
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if _parent(status.read()) != wish["parent"]:
                os._exit(_NO_CONTAINER)
    except OSError as error:
        _leave(_NO_CONTAINER, f"the container could not be made: {error}")
    os.umask(0o022)


def hold_what_an_execution_leaves(wish: dict[str, Any]) -> None:
    """Drop, in a process that executes nothing, the capabilities that an execution would take from it."""
    if wish["user"] != 0:
        left = _bits(wish["ambient"])
        _set_capabilities(left, left, left)
    # A change of user takes away a process's own /proc (prctl(2)), and an execution brings it back.
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)


def _parent(status: str) -> int:
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


def _leave(status: int, message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(status)


class _Mount(NamedTuple):
    source: str
    target: str
    read_only: bool


def _lay_files(root: Path, mounts: list[_Mount]) -> None:
    """Make `root` the root of this process, read-only, with the mounts in it and nothing else behind it."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    # A folder that every machine has and that nothing below comes from; it is covered in this namespace alone.
    stage = Path("/proc")
    _mount("tmpfs", stage, "tmpfs", _QUIET, "mode=755")
    here = stage / "root"
    here.mkdir()
    _mount(root, here, None, _MS_BIND | _MS_REC)
    _make_targets(here, stage, mounts)
    _make_read_only(here, recursive=True)
    _mount("proc", here / "proc", "proc", _QUIET)
    _mount(here / "proc/sys", here / "proc/sys", None, _MS_BIND)
    _make_read_only(here / "proc/sys")
    _mount("sysfs", here / "sys", "sysfs", _QUIET | _MS_RDONLY)
    _lay_devices(here / "dev")
    for mount in sorted(mounts, key=lambda mount: len(Path(mount.target).parts)):
        target = _inside(here, mount.target)
        if not target.exists():
            _make_like(Path(mount.source), target)
        _mount(mount.source, target, None, _MS_BIND | _MS_REC)
        if mount.read_only:
            _make_read_only(target, recursive=True)
    os.chdir(here)
    # The old root is then on top of the new one at the same place, and off it goes.
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _make_targets(here: Path, stage: Path, mounts: list[_Mount]) -> None:
    """Create missing mount targets in overlays, so that no file of the machine changes."""
    overlays: list[Path] = []
    wanted = [_Mount("/", folder, read_only=True) for folder in ("/proc", "/sys", "/dev")]
    for mount in [*wanted, *mounts]:
        target = _inside(here, mount.target)
        under_another = any(_inside(here, other.target) in target.parents for other in [*wanted, *mounts])
        if under_another or target.exists():
            continue
        existing = next(folder for folder in target.parents if folder.exists())
        if not any(overlay in (existing, *existing.parents) for overlay in overlays):
            _overlay(existing, stage / f"overlay-{len(overlays)}")
            overlays.append(existing)
        _make_like(Path(mount.source), target)


def _overlay(folder: Path, upper: Path) -> None:
    before = folder.stat()
    for part in ("upper", "work"):
        (upper / part).mkdir(parents=True)
    os.chown(upper / "upper", before.st_uid, before.st_gid)
    (upper / "upper").chmod(stat.S_IMODE(before.st_mode))
    _mount("overlay", folder, "overlay", 0, f"lowerdir={folder},upperdir={upper}/upper,workdir={upper}/work")


def _make_like(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


def _inside(here: Path, target: str) -> Path:
    """Return a container's absolute path as it is seen from outside of it."""
    place = here
    for part in Path(target).relative_to("/").parts:
        place /= part
        if place.is_symlink() or part == "..":
            raise OSError(f"{target}: a mount's target is named without symbolic links and without ..")
    return place


def _lay_devices(folder: Path) -> None:
    _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NOEXEC, "mode=755")
    for name in _DEVICES:
        (folder / name).touch()
        _mount(f"/dev/{name}", folder / name, None, _MS_BIND)
    for name, target in _LINKS.items():
        (folder / name).symlink_to(target)
    _make_read_only(folder)


def _become(user: int, group: int, groups: list[int], capabilities: list[str], ambient: list[str]) -> None:
    """Be this user, with these capabilities at most from now on; `ambient` ones live through the execution."""
    kept, passed_on = _bits(capabilities + ambient), _bits(ambient)
    for number in range(64):
        if not kept >> number & 1 and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            break  # the kernel knows no more of them
    _call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    _set_capabilities(kept, kept, passed_on)
    for name in ambient:
        _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAPABILITIES[name], 0, 0)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    sets = [part >> shift & 0xFFFFFFFF for shift in (0, 32) for part in (effective, permitted, inheritable)]
    _call("capset", struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", *sets))


def _bits(capabilities: list[str]) -> int:
    return sum(1 << _CAPABILITIES[name] for name in set(capabilities))


def _make_read_only(place: Path, *, recursive: bool = False) -> None:
    attributes = struct.pack("=4Q", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    arguments = (ctypes.c_int(_AT_FDCWD), bytes(place), ctypes.c_uint(flags), attributes, ctypes.c_size_t(32))
    _call("syscall", ctypes.c_long(_MOUNT_SETATTR), *arguments)


def _mount(source: Path | str | None, target: Path | str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [None if one is None else str(one).encode() for one in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), data.encode() or None)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
