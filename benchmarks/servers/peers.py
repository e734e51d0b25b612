"""The caches that the proxy is compared with: their programs and their configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from benchmarks.figures import HAPROXY, NGINX, VARNISH
from benchmarks.machine import programs

MEGABYTES = 16
"""The size of each cache: the default of imdsproxy."""

_CONFIGURATIONS = Path(__file__).resolve().parent / "configurations"
_MOST_CONNECTIONS = 6000
_OTHER_FILES = 200
# The log records of a request, which varnishd writes to memory by default. No server in the comparison logs requests.
_LOG_TAGS_OFF = (
    *("Begin", "End", "Link", "Timestamp", "SessOpen", "SessClose", "ReqStart", "ReqMethod", "ReqURL", "ReqProtocol"),
    *("ReqHeader", "ReqUnset", "ReqAcct", "RespProtocol", "RespStatus", "RespReason", "RespHeader", "RespUnset"),
    *("VCL_call", "VCL_return", "VCL_use", "Hit", "Length"),
)

# The log space is resident from the start, 80 MiB by default, and next to nothing is written.
_LOG_SPACE = "4M"


@dataclass(frozen=True, slots=True)
class Setup:
    """How a peer is set up.

    Attributes:
        folder: An empty folder for its files.
        port: Where it listens on 127.0.0.1.
        upstream: The port of the emulated IMDS.
        lifetime: How long it keeps responses, in seconds.
        paced: Whether it limits its requests to IMDS, if it can.
        megabytes: The size of its cache, in MiB.
        files: How many files a process may have open, connections among them.
    """

    folder: Path
    port: int
    upstream: int
    lifetime: int
    paced: bool
    megabytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A server as Debian packages it; `command` writes its configuration and returns its command line."""

    name: str
    program: str
    version_flag: str
    command: Callable[[Setup, str], list[str]]

    def path(self) -> str | None:
        """Return the path of the program, None if it is not installed."""
        return programs.find(self.program)

    def version(self) -> str:
        """Return the version of the installed program."""
        return programs.version(self.path() or self.program, self.version_flag)


def _nginx(setup: Setup, program: str) -> list[str]:
    imds = f"127.0.0.1:{setup.upstream}"
    paced = _filled("nginx-paced.conf", {"folder": setup.folder, "imds": imds}) if setup.paced else ""
    path = setup.folder / "nginx.conf"
    values = {
        "upstream": f"unix:{setup.folder}/paced.sock" if setup.paced else imds,
        "paced": paced,
        # nginx keeps each cached file open, and connections need descriptors as well.
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
    unlogged = ",".join(f"-{tag}" for tag in _LOG_TAGS_OFF)
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
    """Return how many connections a peer is set up for. Each may need a second descriptor."""
    return min(_MOST_CONNECTIONS, (files - _OTHER_FILES) // 2)


def _filled(name: str, values: Mapping[str, object]) -> str:
    return Template((_CONFIGURATIONS / name).read_text(encoding="utf-8")).substitute(values)


PEERS = (
    Peer(NGINX, "nginx", "-v", _nginx),
    Peer(HAPROXY, "haproxy", "-v", _haproxy),
    Peer(VARNISH, "varnishd", "-V", _varnish),
)
