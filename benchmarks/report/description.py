"""The conditions of a run: the machine, the date, and the versions of all programs."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.machine import programs
from benchmarks.servers.peers import PEERS

_LIBRARIES = ("uvicorn", "uvloop", "httptools", "httpx")


def describe(command: str, pinned: str) -> dict[str, str]:
    """Return the conditions of a run, before anything is measured.

    Neither the name of the machine nor any of its paths is included, because the result files are published.

    Args:
        command: The command that was run.
        pinned: Which cores servers and load are pinned to.
    """
    words = {
        "command": command,
        "date": dt.datetime.now(dt.UTC).isoformat(" ", "minutes"),
        "cpu": _cpu(),
        "cores": f"{os.cpu_count() or '?'}; {pinned}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES),
        "beside": _beside(),
    }
    if hasattr(os, "getloadavg"):
        words["load before"] = f"{os.getloadavg()[0]:.2f} (average of one minute; much of it makes every figure worse)"
    return words


def _beside() -> str:
    versions = [f"{peer.name} {peer.version()}" for peer in PEERS if peer.path() is not None]
    wrk = programs.find("wrk")
    return (
        ", ".join([*versions, *([f"wrk {programs.version(wrk, '-v')}"] if wrk else [])]) or "none of them is installed"
    )


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
