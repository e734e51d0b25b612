"""The sdist and the wheel, by the build backend, the same bytes whenever and wherever they are made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from release.source import ReleaseError

# The backend works in the current folder, so that each runs in a process of its own.
_BUILD = "import sys; from flit_core import buildapi; print(getattr(buildapi, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, into: Path, epoch: int) -> Path:
    """Build an archive of a clean source folder, and return its path.

    Args:
        kind: `sdist` or `wheel`.
        source: The files of the commit.
        into: The folder for the archive.
        epoch: The time of its files, in seconds since 1970.
    """
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, f"build_{kind}", str(into.resolve())],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ReleaseError(f"the {kind} cannot be built: {done.stderr.strip()}")
    return into / done.stdout.splitlines()[-1]
