"""The installation by the Makefile, from locks and a local index of empty wheels."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.kit import ROOT
from tests.size import size

pytestmark = [
    pytest.mark.process,
    pytest.mark.client,
    pytest.mark.skipif(shutil.which("make") is None, reason="not installed: make"),
    pytest.mark.skipif(sys.platform == "win32", reason="the Makefile is for POSIX systems"),
]
NEWER = "9999"
_WITH_PYTHON = {"pip", "setuptools"}
# Settings that a user may have for other projects. None of them may change what is installed here, or where.
_OF_THE_USER = {
    "PIP_CONSTRAINT": "/nonexistent/constraints.txt",
    "PIP_NO_BINARY": ":all:",
    "PIP_REQUIRE_HASHES": "1",
    "PIP_REQUIRE_VIRTUALENV": "1",
    "PIP_TARGET": "/nonexistent/target",
    "PIP_USER": "1",
}


def locked(name: str) -> dict[str, str]:
    """Return the versions that a lock of the project has for this platform and Python."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="ascii").splitlines()
    found = [Requirement(line.removesuffix("\\")) for line in lines if not line.startswith(" ")]
    return {
        one.name: str(one.specifier).removeprefix("==") for one in found if one.marker is None or one.marker.evaluate()
    }


@dataclass
class Project:
    """A copy of what `make` reads, with locks of its own, and a folder of files as its only index."""

    root: Path
    python: str
    environment: Path = field(init=False)
    index: Path = field(init=False)

    def __post_init__(self) -> None:
        self.environment = self.root / "environment"
        self.index = self.root / "index"
        for folder in ("index", "requirements", "imdsproxy"):
            (self.root / folder).mkdir()
        for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE", "imdsproxy/__init__.py"):
            shutil.copy(ROOT / name, self.root / name)
        (self.root / "imdsproxy" / "cli.py").write_text('"""No commands."""\n', encoding="ascii")

    def wheel(self, name: str, version: str) -> str:
        """
        Add a wheel to the index, with all that the distribution of this name requires; return its SHA-256.

        It is empty, but for the build backend, which has to work.
        """
        distribution = importlib.metadata.distribution(name)
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        metadata += [f"Provides-Extra: {extra}" for extra in distribution.metadata.get_all("Provides-Extra") or []]
        metadata += [f"Requires-Dist: {requirement}" for requirement in distribution.requires or []]
        plain = name.replace("-", "_")
        info = f"{plain}-{version}.dist-info"
        path = self.index / f"{plain}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as file:
            if name == "flit-core":
                for one in distribution.files or []:
                    if one.suffix == ".py":
                        file.write(str(one.locate()), str(one))
            file.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def lock(self, name: str, versions: dict[str, str]) -> None:
        """Write a lock of these releases and add them to the index, each with a newer one."""
        text = ""
        for distribution, version in versions.items():
            text += f"{distribution}=={version} --hash=sha256:{self.wheel(distribution, version)}\n"
            self.wheel(distribution, NEWER)
        (self.root / "requirements" / f"{name}.txt").write_text(text, encoding="ascii")

    def source(self, name: str, version: str) -> None:
        """Put a source in the place of a wheel in the index, and its hash in that of the wheel's in the lock."""
        wheel = self.index / f"{name}-{version}-py3-none-any.whl"
        source = self.index / f"{name}-{version}.tar.gz"
        with tarfile.open(source, "w:gz") as file:
            file.add(ROOT / "LICENSE", f"{name}-{version}/setup.py")
        lock = self.root / "requirements" / "emulator.txt"
        old, new = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, source))
        lock.write_text(lock.read_text(encoding="ascii").replace(old, new), encoding="ascii")
        wheel.unlink()

    def make(self, stamp: str) -> subprocess.CompletedProcess[str]:
        """Run the rule that builds the environment, with no index but the test's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "MFLAGS"))}
        index = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        return subprocess.run(
            ["make", f"VENV={self.environment}", f"PYTHON={self.python}", f"{self.environment}/{stamp}.stamp"],
            cwd=self.root,
            env=kept | _OF_THE_USER | index,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )

    def installed(self) -> dict[str, str]:
        """Return the versions in the environment, but for the project's own and what Python brings."""
        found: dict[str, str] = {}
        for one in importlib.metadata.distributions(path=[str(next(self.environment.glob("lib/*/site-packages")))]):
            found[canonicalize_name(one.name)] = one.version
        assert found.pop("imdsproxy")
        return {name: version for name, version in found.items() if name not in _WITH_PYTHON}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an interpreter that makes each new environment, in `make test`, as a copy of its first."""
    folder = tmp_path_factory.mktemp("python")
    first, script = folder / "environment", folder / "python"
    making = f"[ -e {first} ] || '{sys.executable}' -m venv {first} || exit 1; exec cp -a {first} \"$3\""
    script.write_text(
        f"#!/bin/sh\nif [ \"$1 $2\" = '-m venv' ]; then {making}; fi\nexec '{sys.executable}' \"$@\"\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    return size(short=str(script), full=sys.executable)


@pytest.fixture
def project(tmp_path: Path, python: str) -> Project:
    return Project(tmp_path, python)


def test_locked_release_is_installed_where_a_newer_one_is_offered(project: Project) -> None:
    for name in ("emulator", "dev"):
        project.lock(name, locked(name))
        done = project.make(name.replace("emulator", "run"))
        assert done.returncode == 0, done.stdout
        assert project.installed() == locked(name)


def test_environment_follows_the_lock_and_needs_all_of_it(project: Project) -> None:
    versions = locked("emulator")

    project.lock("emulator", versions)
    project.source("idna", versions["idna"])
    done = project.make("run")
    assert done.returncode != 0
    assert f"No matching distribution found for idna=={versions['idna']}" in done.stdout, "a source is not built"

    project.lock("emulator", {name: version for name, version in versions.items() if name != "idna"})
    done = project.make("run")
    assert done.returncode != 0
    assert "requires idna, which is not installed" in done.stdout
    assert "'make clean' removes" in done.stdout
    assert not (project.environment / "run.stamp").exists()

    project.lock("emulator", versions)
    done = project.make("run")
    assert done.returncode == 0, done.stdout
    assert project.installed() == versions

    fewer = {name: version for name, version in versions.items() if name not in {"cryptography", "cffi", "pycparser"}}
    project.lock("emulator", fewer | {"idna": NEWER})
    done = project.make("run")
    assert done.returncode == 0, done.stdout
    assert project.installed() == fewer | {"idna": NEWER}, "nothing of the earlier lock is left"
