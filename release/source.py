"""The commit that is released: whether it can be, and its files."""

from __future__ import annotations

import re
import subprocess
import tarfile
import tomllib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_DOCKERFILE_VERSION = re.compile(r"^ARG VERSION=(\S+)$", re.MULTILINE)
_CHART_VERSION = re.compile(r"^(version|appVersion): \"?([^\"\s]+)\"?$", re.MULTILINE)
CHART = "k8s/helm/imdsproxy"


class ReleaseError(Exception):
    """The release cannot be made. Each line states what is wrong, and what to do."""


@dataclass(frozen=True)
class Commit:
    """What is released."""

    version: str
    revision: str
    """The hash of the commit."""
    epoch: int
    """The time of the commit, in seconds since 1970, which is the time of everything that is made."""


def inspect(root: Path, tag: str = "") -> Commit:
    """Return the commit that is checked out. Raise ReleaseError with a line for each obstacle.

    Args:
        root: The checkout.
        tag: The tag that is released, if there is one, such as `v0.1.0`.
    """
    revision = _git(root, "rev-parse", "HEAD").strip()
    changed = _git(root, "status", "--porcelain").splitlines()
    mistakes = []
    if changed:
        files = ", ".join(line[3:] for line in changed[:5]) + (" …" if len(changed) > 5 else "")
        mistakes.append(f"the tree differs from its commit: {files}; commit the changes, or remove them")
    version = _only(_VERSION, root / "imdsproxy" / "__init__.py")
    mistakes += disagreements(root, version, tag)
    if mistakes:
        raise ReleaseError("\n".join(mistakes))
    return Commit(version, revision, int(_git(root, "log", "-1", "--format=%ct")))


def disagreements(root: Path, version: str, tag: str) -> list[str]:
    """Return a line for each file that states another version, or nothing about this one."""
    found = {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
        "ARG VERSION in Dockerfile": _only(_DOCKERFILE_VERSION, root / "Dockerfile"),
    }
    chart = root / CHART / "Chart.yaml"
    if chart.exists():
        stated = _CHART_VERSION.findall(chart.read_text(encoding="utf-8"))
        found |= {f"{name} in {CHART}/Chart.yaml": value for name, value in stated}
    if tag:
        found["the tag"] = tag.removeprefix("v")
    lines = [
        f"{place} is {stated}, but imdsproxy/__init__.py has {version}; make them equal"
        for place, stated in found.items()
        if stated != version
    ]
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)}(?: |$)", changelog, re.MULTILINE):
        lines.append(f'CHANGELOG.md has no section "## {version}"; rename "## Unreleased", and add the date')
    elif re.search(r"^## Unreleased$", changelog, re.MULTILINE):
        lines.append('CHANGELOG.md still has a section "## Unreleased"; move its lines to the section of the release')
    return lines


def export(root: Path, folder: Path) -> None:
    """Write the files of the commit into a folder, so that nothing that is not committed gets into the release."""
    packed = subprocess.run(["git", "archive", "--format=tar", "HEAD"], cwd=root, capture_output=True, check=True)
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")


def _only(pattern: re.Pattern[str], path: Path) -> str:
    match = pattern.search(path.read_text(encoding="utf-8"))
    if match is None:
        raise ReleaseError(f"{path} states no version")
    return match[1]


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ReleaseError("git is not installed, and a release is made from a commit; install it") from None
    if done.returncode:
        raise ReleaseError(f"a release is made from a git checkout, and this folder is not one: {done.stderr.strip()}")
    return done.stdout
