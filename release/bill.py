"""The bill of materials (CycloneDX 1.6): the locked packages with versions, hashes and licences.

The packages of `requirements/run.txt` are required, those of the extras' locks optional. The licences are those that
the installed packages state. A package that is not installed at its locked version has none.
"""

from __future__ import annotations

import importlib.metadata
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement

from release.source import Commit, ReleaseError

_NAMESPACE = uuid.UUID("4b7f2a56-7c1e-4c0e-9f6d-0d3b8f8f6c11")
_LONGEST_LICENCE = 100
# The locks, and what each is for; a package is listed once, for the first of them that has it.
_LOCKS = {"run": "", "otel": "otel", "kubernetes": "kubernetes", "emulator": "emulator"}
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Locked:
    """One package of a lock."""

    name: str
    version: str
    marker: str
    """Where it is installed; empty for everywhere."""
    hashes: tuple[str, ...]
    """SHA-256 of each of its files."""


def read_lock(text: str) -> Iterator[Locked]:
    """Yield the packages of a lock."""
    for entry in re.split(r"\n(?=\S)", text.strip()):
        lines = [line for line in entry.splitlines() if not line.lstrip().startswith("#")]
        if lines:
            head, *_ = lines[0].removesuffix("\\").partition(" --hash")
            requirement = Requirement(head.strip())
            version = str(requirement.specifier).removeprefix("==")
            yield Locked(
                requirement.name, version, str(requirement.marker or ""), tuple(_HASH.findall("\n".join(lines)))
            )


def make(requirements: Path, commit: Commit) -> str:
    """Return the bill as JSON. Raise ReleaseError if it does not follow the standard's schema."""
    bill = Bom(serial_number=uuid.uuid5(_NAMESPACE, commit.revision))
    bill.metadata.timestamp = datetime.fromtimestamp(commit.epoch, UTC)
    bill.metadata.component = root = Component(
        name="imdsproxy",
        version=commit.version,
        type=ComponentType.APPLICATION,
        bom_ref=f"imdsproxy@{commit.version}",
        licenses=[LicenseFactory().make_from_string("MIT")],
        properties=[Property(name="imdsproxy:revision", value=commit.revision)],
    )
    listed: dict[str, Component] = {}
    for lock, extra in _LOCKS.items():
        for locked in read_lock((requirements / f"{lock}.txt").read_text(encoding="ascii")):
            listed.setdefault(locked.name, _component(locked, extra))
    for component in listed.values():
        bill.components.add(component)
    bill.register_dependency(root, listed.values())
    text = JsonV1Dot6(bill).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise ReleaseError(f"the bill of materials does not follow CycloneDX 1.6: {str(wrong)[:300]}")
    return text + "\n"


def _component(locked: Locked, extra: str) -> Component:
    about = {"imdsproxy:extra": extra, "imdsproxy:marker": locked.marker}
    return Component(
        name=locked.name,
        version=locked.version,
        type=ComponentType.LIBRARY,
        scope=ComponentScope.OPTIONAL if extra or locked.marker else ComponentScope.REQUIRED,
        bom_ref=f"{locked.name}@{locked.version}",
        purl=PackageURL("pypi", None, locked.name, locked.version),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in locked.hashes],
        licenses=_licences(locked),
        properties=[Property(name=name, value=value) for name, value in about.items() if value],
    )


def _licences(locked: Locked) -> list[License]:
    try:
        distribution = importlib.metadata.distribution(locked.name)
    except importlib.metadata.PackageNotFoundError:
        return []
    metadata = distribution.metadata
    stated = licence_of(
        {name: metadata[name] for name in ("License-Expression", "License") if name in metadata},
        metadata.get_all("Classifier") or [],
    )
    if distribution.version != locked.version or not stated:
        return []
    return [LicenseFactory().make_from_string(stated)]


def licence_of(metadata: Mapping[str, str], classifiers: list[str]) -> str:
    """Return the licence that a package's metadata states, or an empty text."""
    if expression := metadata.get("License-Expression"):
        return expression
    text = metadata.get("License", "").strip()
    if text and "\n" not in text and len(text) <= _LONGEST_LICENCE:
        return text
    approved = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")]
    return " or ".join(approved)
