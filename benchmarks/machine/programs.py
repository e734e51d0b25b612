"""Installed programs: where they are, and their versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

_VERSION = re.compile(r"(\d+\.\d+\.\d+)")
_TIMEOUT = 10.0


def find(program: str) -> str | None:
    """Return the path of a program, None if it is not installed.

    Beside each `bin` of PATH its `sbin` is searched as well, because not every user's PATH names it.
    """
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    beside = [str(Path(folder).with_name("sbin")) for folder in folders if Path(folder).name == "bin"]
    return shutil.which(program, path=os.pathsep.join([*folders, *beside]))


def version(program: str, flag: str) -> str:
    """Return the first version number that a program prints when it is called with this flag."""
    try:
        done = subprocess.run([program, flag], capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return "of no known version"
    found = _VERSION.search(done.stdout + done.stderr)
    return found[1] if found else "of no known version"
