"""The caches that the proxy is compared with: which programs they are, how they are set up, and their versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from benchmarks.figures import HAPROXY, NGINX, VARNISH

MEGABYTES = 16
"""What each cache may hold: imdsproxy's default."""

_CONFIGURATIONS = Path(__file__).resolve().parent / "configurations"
_MOST_CONNECTIONS = 6000
_FILES_ASIDE = 200
_VERSION = re.compile(r"(\d+\.\d+\.\d+)")
_TIMEOUT = 10.0
# The records of each request, which varnishd otherwise writes to memory. No server here writes what it was asked.
_UNLOGGED = (
    *("Begin", "End", "Link", "Timestamp", "SessOpen", "SessClose", "ReqStart", "ReqMethod", "ReqURL", "ReqProtocol"),
    *("ReqHeader", "ReqUnset", "ReqAcct", "RespProtocol", "RespStatus", "RespReason", "RespHeader", "RespUnset"),
    *("VCL_call", "VCL_return", "VCL_use", "Hit", "Length"),
)

# All of it is resident from the start, 80 MiB if nobody says otherwise, and there is next to nothing to write.
_LOG_SPACE = "4M"


@dataclass(frozen=True, slots=True)
class Setup:
    """Where a peer listens and asks, and how it is to behave; `folder` is its own."""

    folder: Path
    port: int
    upstream: int
    lifetime: int
    paced: bool
    megabytes: int
    files: int
    """How many files, connections among them, a process may have open."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server as Debian packages it; `command` writes its configuration and gives what is to be run."""

    name: str
    program: str
    version_flag: str
    command: Callable[[Setup, str], list[str]]

    def path(self) -> str | None:
        """Give where the program is, None where it is not installed."""
        return found(self.program)

    def version(self) -> str:
        """Give the version of the installed program."""
        return version(self.path() or self.program, self.version_flag)


def found(program: str) -> str | None:
    """Find a program as the shell does, and in the `sbin` beside each `bin`, which not every user's path names."""
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    beside = [str(Path(folder).with_name("sbin")) for folder in folders if Path(folder).name == "bin"]
    return shutil.which(program, path=os.pathsep.join([*folders, *beside]))


def version(program: str, flag: str) -> str:
    """Give the first version number that a program prints when it is asked."""
    try:
        done = subprocess.run([program, flag], capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return "of no known version"
    told = _VERSION.search(done.stdout + done.stderr)
    return told[1] if told else "of no known version"


def _nginx(setup: Setup, program: str) -> list[str]:
    imds = f"127.0.0.1:{setup.upstream}"
    paced = _filled("nginx-paced.conf", {"folder": setup.folder, "imds": imds}) if setup.paced else ""
    path = setup.folder / "nginx.conf"
    values = {
        "upstream": f"unix:{setup.folder}/paced.sock" if setup.paced else imds,
        "paced": paced,
        # Each cached file that is kept open takes one as well, and connections have to find room beside them.
        "files": max(1000, setup.files - connections(setup.files) - 1000),
        **_common(setup),
    }
    path.write_text(_filled("nginx.conf", values), encoding="utf-8")
    return [program, "-e", "stderr", "-p", str(setup.folder), "-c", str(path)]


def _haproxy(setup: Setup, program: str) -> list[str]:
    path = setup.folder / "haproxy.cfg"
    path.write_text(_filled("haproxy.cfg", {"imds": f"127.0.0.1:{setup.upstream}", **_common(setup)}), encoding="utf-8")
    return [program, "-db", "-f", str(path)]


def _varnish(setup: Setup, program: str) -> list[str]:
    path = setup.folder / "imds.vcl"
    path.write_text(_filled("varnish.vcl", {"imds_port": setup.upstream, **_common(setup)}), encoding="utf-8")
    unlogged = ",".join(f"-{tag}" for tag in _UNLOGGED)
    parameters = {"thread_pools": "1", "vsl_mask": unlogged, "vsl_space": _LOG_SPACE}
    arguments = ["-F", "-j", "none", "-n", str(setup.folder / "work"), "-f", str(path)]
    arguments += ["-a", f"127.0.0.1:{setup.port}", "-s", f"malloc,{setup.megabytes}m"]
    return [program, *arguments, *(word for item in parameters.items() for word in ("-p", "=".join(item)))]


def _common(setup: Setup) -> dict[str, object]:
    return {
        "folder": setup.folder,
        "port": setup.port,
        "lifetime": setup.lifetime,
        "megabytes": setup.megabytes,
        "connections": connections(setup.files),
    }


def connections(files: int) -> int:
    """Give for how many connections a peer is set up: it may need a second descriptor for each."""
    return min(_MOST_CONNECTIONS, (files - _FILES_ASIDE) // 2)


def _filled(name: str, values: Mapping[str, object]) -> str:
    return Template((_CONFIGURATIONS / name).read_text(encoding="utf-8")).substitute(values)


PEERS = (
    Peer(NGINX, "nginx", "-v", _nginx),
    Peer(HAPROXY, "haproxy", "-v", _haproxy),
    Peer(VARNISH, "varnishd", "-V", _varnish),
)
