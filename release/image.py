"""The three images of the `Dockerfile`, by buildah, as archives for `docker load`.

Every file and every field of an image has the time of the commit, and nothing that buildah draws at random, so that the
same parts give the same bytes. The parts are the base image and Debian's packages. Neither is pinned beyond the release
of Debian: they are those of the day.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import tarfile
import tempfile
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import IO

from release.source import Commit, ReleaseError

SOURCES = ("registry", "fetched", "none")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
# The flags that choose a stage of the Dockerfile, by the name of the image; the empty name is that of the proxy.
_STAGES = {
    "": (),
    "redirect-": ("--target=redirect",),
    "emulator-": ("--target=emulator", "--build-arg=LOCK=emulator"),
}


def check(image_from: str) -> None:
    """Raise ReleaseError if the images cannot be built here."""
    if image_from == "none":
        return
    if shutil.which("buildah") is None:
        raise ReleaseError("buildah is not installed; install it, or make the release without images: IMAGE=none")
    if platform.machine() not in _MACHINES:
        raise ReleaseError(f"no image is made for {platform.machine()}; use IMAGE=none")
    if image_from == "fetched":
        from tests.system.image import missing  # noqa: PLC0415  # needs a checkout, and what .ci/debian fetches

        if reason := missing("run", "emulator"):
            raise ReleaseError(f"{reason}; run .ci/debian, or use IMAGE=none")


def flags(commit: Commit, source_url: str) -> list[str]:
    """Return the flags of `buildah build` that bind an image to the commit, and to where its source is published."""
    created = datetime.fromtimestamp(commit.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    values = {
        "SOURCE_DATE_EPOCH": str(commit.epoch),
        "VERSION": commit.version,
        "REVISION": commit.revision,
        "CREATED": created,
        "SOURCE": source_url,
    }
    return [f"--timestamp={commit.epoch}", *(f"--build-arg={name}={value}" for name, value in values.items())]


def build(image_from: str, source: Path, into: Path, commit: Commit, source_url: str = "") -> list[Path]:
    """Build the images from a source folder, and return their archives."""
    if image_from == "none":
        return []
    machine = _MACHINES[platform.machine()]
    archives = {name: into / f"imdsproxy-{commit.version}-{name}image-{machine}.tar" for name in _STAGES}
    (_from_fetched if image_from == "fetched" else _from_registry)(
        source, archives, commit.version, flags(commit, source_url)
    )
    for name, path in archives.items():
        settle(path, commit.epoch, _named(name, commit.version))
    return list(archives.values())


def settle(path: Path, epoch: int, name: str) -> None:
    """Rewrite the archive of an image without what buildah draws at random: names of containers and stages.

    Args:
        path: The archive.
        epoch: The time of its files, in seconds since 1970.
        name: The only name that the image has where the archive is loaded.
    """
    with tarfile.open(path) as before:
        (manifest,) = json.loads(_content(before, "manifest.json"))
        config = json.loads(_content(before, manifest["Config"]))
        for drawn in ("container", "container_config", "parent"):
            config.pop(drawn, None)
        config["config"].pop("Hostname", None)
        for step in config["history"]:
            step.pop("comment", None)
        text = json.dumps(config, sort_keys=True).encode()
        manifest["RepoTags"] = [name]
        manifest["Config"] = f"{hashlib.sha256(text).hexdigest()}.json"
        settled = path.with_suffix(".settled")
        with tarfile.open(settled, "w", format=tarfile.PAX_FORMAT) as after:
            _add(after, manifest["Config"], epoch, len(text), BytesIO(text))
            for layer in manifest["Layers"]:
                member = before.getmember(layer)
                _add(after, layer, epoch, member.size, before.extractfile(member))
            listed = json.dumps([manifest], sort_keys=True).encode()
            _add(after, "manifest.json", epoch, len(listed), BytesIO(listed))
    settled.replace(path)


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    return b"" if file is None else file.read()


def _add(archive: tarfile.TarFile, name: str, epoch: int, size: int, content: IO[bytes] | None) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size, epoch
    archive.addfile(member, content)


def _from_registry(source: Path, archives: dict[str, Path], version: str, settings: list[str]) -> None:
    for name, path in archives.items():
        tag = f"localhost/imdsproxy-{name}release:{version}"
        _buildah("build", "--layers", "--format=docker", *settings, *_STAGES[name], f"--tag={tag}", str(source))
        _buildah("push", "--quiet", tag, f"docker-archive:{path}")


def _from_fetched(source: Path, archives: dict[str, Path], _version: str, settings: list[str]) -> None:
    from tests.system.image import Builder, build_both, build_emulator  # noqa: PLC0415  # as in `check`

    with tempfile.TemporaryDirectory() as folder:
        builder = Builder(Path(folder))
        tags = [*build_both(builder, *settings, context=source), build_emulator(builder, *settings, context=source)]
        for tag, path in zip(tags, archives.values(), strict=True):
            builder.save(tag, path)


def _named(name: str, version: str) -> str:
    """Return the name that an image has where its archive is loaded."""
    return f"imdsproxy{f'-{name}'.rstrip('-')}:{version}"


def _buildah(*arguments: str) -> None:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"buildah {arguments[0]} has failed: {done.stderr.strip()[-2000:]}")
