"""Prometheus's own checker: the one that is installed, or the one that .ci/debian takes out of Debian's package."""

from __future__ import annotations

import shutil
import subprocess

from tests.kit import ROOT

MISSING = "promtool is not installed (Debian package prometheus)"


def program() -> str | None:
    """Return the path of promtool, or None."""
    return shutil.which("promtool") or shutil.which("promtool", path=ROOT / ".debian")


def promtool(*arguments: str, given: bytes = b"") -> tuple[int, str]:
    """Run promtool, and return its status and everything that it said."""
    found = program()
    assert found, MISSING
    ended = subprocess.run([found, *arguments], input=given, capture_output=True, timeout=60, check=False)
    return ended.returncode, (ended.stdout + ended.stderr).decode()
