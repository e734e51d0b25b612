"""The locks: every installation uses exactly the locked releases."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from pathlib import Path

import pytest

from tests.kit import ROOT

LOCKS = ("run", "emulator", "otel", "kubernetes", "testing", "dev")
_LOCKED = re.compile(r"([a-z0-9-]+)==([\w.]+)(?: ; [^\\]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
_FROM_A_LOCK = {"--require-hashes", "--no-deps", "--only-binary :all:"}
_FROM_HERE = {"--no-index", "--no-deps", "--no-build-isolation"}
_INSTALLS = re.compile(r"""(?ix)
    \b(?: pip (?:\.exe)? ["')}]*  (?:\s+--python\s+\S+)? | pipx | uv\ pip | uv\ tool )
    \s+ (?:install|download|wheel|run) \b (?P<arguments>[^`\n;&]*)""")
_CHECKS = re.compile(r"""(?i)\bpip(?:\.exe)?["')}]*\s+check\b""")
_SUFFIXES = {"", ".cfg", ".in", ".md", ".ps1", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="ascii")
    return {match[1]: match[0] for match in _LOCKED.finditer(text)}


@functools.cache
def texts() -> dict[Path, str]:
    """Return each text file of the project, commands of several lines joined to one, but not this file."""
    found = {}
    for folder, inner, names in os.walk(ROOT):
        # An environment in a hidden folder has tens of thousands of files. Regressions are bytes, without a suffix.
        inner[:] = [name for name in inner if not _hidden(name) and name not in {"regressions", "__pycache__"}]
        for path in (Path(folder, name) for name in names if not _hidden(name)):
            if path.suffix in _SUFFIXES and path != Path(__file__):
                found[path.relative_to(ROOT)] = re.sub(r"[ \t]*\\\n\s*", " ", path.read_text(encoding="utf-8"))
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") and name != ".ci"


def faults(text: str) -> list[str]:
    """Return what is wrong with the installing commands in a text."""
    found = []
    for match in _INSTALLS.finditer(text):
        arguments = match["arguments"].strip()
        if not arguments:  # the command's name in a sentence
            continue
        wanted = _FROM_A_LOCK if re.search(r"(^|\s)-r\b", arguments) else _FROM_HERE
        absent = sorted(flag for flag in wanted if f" {flag} " not in f" {arguments} ")
        found += [f"{match[0]!r} lacks {flag}" for flag in absent]
        if wanted is _FROM_A_LOCK and "download" not in match[0] and not _CHECKS.search(text, match.end()):
            found.append(f"{match[0]!r} is not followed by pip check")
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_only_names_versions_and_hashes(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="ascii")
    assert _LOCKED.sub("", text) == ""
    assert len(locked(name)) > 15


def test_each_lock_includes_the_image_lock_and_the_one_for_development_includes_all() -> None:
    run, *extras, dev = map(locked, LOCKS)
    for extra in extras:
        assert run.items() < extra.items() < dev.items()


@pytest.mark.parametrize("extra", ["otel", "kubernetes"])
def test_what_an_extra_brings_is_in_its_lock_only(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name in (re.split(r"[>=]", each)[0] for each in project["optional-dependencies"][extra]):
        assert [lock for lock in LOCKS if name in locked(lock)] == [extra, "dev"]


def test_emulator_lock_has_cryptography_and_the_image_lock_has_not() -> None:
    assert "cryptography" in locked("emulator")
    assert "cryptography" not in locked("run")


def test_image_can_be_built_from_each_lock_that_its_page_names() -> None:
    page = (ROOT / "docs" / "container.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| `LOCK` |"))
    named = set(re.findall(r"`(\w+)`", row)) & set(LOCKS)
    seen = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert named == {"run", "kubernetes", "emulator"}
    assert {line for line in seen if "requirements" in line} == {f"!requirements/{name}.txt" for name in named}


@pytest.mark.parametrize("name", [lock for lock in LOCKS if lock != "dev"])
def test_each_package_that_is_installed_to_serve_has_a_reason(name: str) -> None:
    wanted = re.findall(r"^([a-z][a-z0-9-]+)", (ROOT / "requirements" / f"{name}.in").read_text("ascii"), re.MULTILINE)
    reasons = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").partition("\n## Dependencies\n")[2]
    assert [each for each in wanted if not re.search(rf"(?<![\w-]){re.escape(each)}(?![\w-])", reasons)] == []


def test_build_backend_is_the_locked_one() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    line = locked("run")["flit-core"].split(" ", 1)[0]
    assert [one.replace("_", "-") for one in required] == [line], "build-system.requires names what the lock has"


def test_every_install_uses_a_lock_or_local_files() -> None:
    assert {str(path): found for path, text in texts().items() if (found := faults(text))} == {}


def test_every_file_that_reads_a_lock_is_checked() -> None:
    readers = {
        str(path) for path, text in texts().items() if any("-r" in match[0] for match in _INSTALLS.finditer(text))
    }
    assert readers >= {"Makefile", "Dockerfile", ".ci/debian", ".ci/windows", "docs/service.md"}


LOCK = "pip install --require-hashes --no-deps --only-binary :all: -r requirements/run.txt\npip check"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (LOCK, 0),
        ("`pip install` and no more", 0),
        ("pip install --no-index --no-deps --no-build-isolation .", 0),
        (LOCK.replace("--no-deps ", ""), 1),
        (LOCK.replace("--only-binary :all: ", ""), 1),
        (LOCK.removesuffix("pip check"), 1),
        ("$(PIP) install -r requirements/run.txt\n$(PIP) check", 3),
        ('"$env/python" -m pip download -r run.txt', 3),
        ("& $pip install -r run.txt; & $pip check", 3),
        ("/tools/bin/pip --python /opt/python install -r run.txt && $pip check", 3),
        ("pip install 'imdsproxy[emulator]'", 3),
        ("`pip install imdsproxy` fixes that", 3),
        ("pip install -e '.[emulator]'", 3),
        ("pip install --upgrade pip", 3),
        ("pipx install imdsproxy", 3),
        ("uv tool install imdsproxy", 3),
    ],
)
def test_lock_check_finds_each_kind_of_fault(text: str, count: int) -> None:
    assert len(faults(text)) == count
