"""Build the image from the packages that `.ci/debian` has fetched, with no network but loopback.

Everything buildah keeps lies in one folder: nothing of this machine's own images is seen or touched, and when the
folder goes, all of it is gone. By hand, and for how long it takes:

    python -m tests.system.image FOLDER
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kernel import call
from tests.kit import ROOT

DOCKERFILE = ROOT / "Dockerfile"
_FETCHED = ROOT / ".debian" / "image"
_AFTER_THE_BUILD = "FROM scratch AS files\n"
_NO_REGISTRY = ""
_ANY_SIGNATURE = {"default": [{"type": "insecureAcceptAnything"}]}
_PIP = "[global]\nno-index = true\nfind-links = /wheels\n"
_LONGEST = 600  # seconds
_MEMORY = 6 << 30  # bytes; the images take a third
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MNT_DETACH = 2
_MOST_SAID = 5000  # characters, the last ones


def missing(*locks: str) -> str:
    """Return what this machine lacks to build the images from these locks; empty if it lacks nothing."""
    if shutil.which("buildah") is None:
        return "not installed: buildah"
    needed = (_FETCHED / "base.tar", _FETCHED / "packages", *map(_wheels, locks or ("run",)))
    absent = [path.name for path in needed if not path.exists()]
    if absent:
        return f".ci/debian has not fetched what the image is built from: {', '.join(absent)}"
    return ""


@contextlib.contextmanager
def in_memory(folder: Path) -> Iterator[None]:
    """Keep what is written to a folder in memory, where there is enough, for this process and those that it starts.

    A build writes two gigabytes in 40,000 files, which takes a disk more of the processor than the rest of the build.
    The process moves into a mount namespace of its own, so nothing is left if it is killed.
    """
    if not _may_mount():
        yield
        return
    call("unshare", _CLONE_NEWNS)
    call("mount", b"none", b"/", b"none", _MS_REC | _MS_PRIVATE, b"")
    call("mount", b"images", bytes(folder), b"tmpfs", 0, b"mode=700,size=%d" % _MEMORY)
    try:
        yield
    finally:
        call("umount2", bytes(folder), _MNT_DETACH)


def _may_mount() -> bool:
    memory = Path("/proc/meminfo")
    if sys.platform != "linux" or os.geteuid() != 0 or not memory.exists():
        return False
    lines = (line.split() for line in memory.read_text(encoding="ascii").splitlines())
    return next((int(size) << 10 for name, size, *_ in lines if name == "MemAvailable:"), 0) > _MEMORY


@dataclass(frozen=True)
class Image:
    """An image as a container runtime has it once it is unpacked."""

    root: Path
    """Its files."""
    config: dict[str, Any]
    """What Docker calls the image's config: Entrypoint, Env, User, Labels and so on."""
    layers: list[int]
    """The sizes of its layers as a registry keeps them, compressed, in bytes."""

    @property
    def command(self) -> list[str]:
        """What a runtime executes by default."""
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    def env(self, **settings: object) -> dict[str, str]:
        """Return the environment of its processes, with these settings of the proxy, named in lower case."""
        own = dict(one.split("=", 1) for one in self.config["Env"])
        return own | {f"IMDSPROXY_{name.upper()}": str(value) for name, value in settings.items()}

    @property
    def user(self) -> int:
        return int(self.config["User"].split(":")[0])

    @property
    def group(self) -> int:
        return int(self.config["User"].split(":")[1])


class Builder:
    """buildah, with all it keeps in one folder, and the base image there under the Dockerfile's own name for it."""

    def __init__(self, folder: Path) -> None:
        """Make the base image."""
        self.folder = folder
        for name, text in (("registries.conf", _NO_REGISTRY), ("policy.json", json.dumps(_ANY_SIGNATURE))):
            (folder / name).write_text(text, encoding="ascii")
        (folder / "pip.conf").write_text(_PIP, encoding="ascii")
        storage = f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
        (folder / "storage.conf").write_text(storage, encoding="ascii")
        (folder / "temporary").mkdir()
        empty = self._buildah("from", "scratch").strip()
        self._buildah("add", "--quiet", empty, str(_FETCHED / "base.tar"), "/")
        self._buildah("commit", "--quiet", "--rm", empty, _base())

    def build(
        self, tag: str, *flags: str, context: Path = ROOT, dockerfile: Path = DOCKERFILE, lock: str = "run"
    ) -> str:
        """Build an image and return its name. Raise AssertionError with the output if the build fails.

        Args:
            tag: The name.
            flags: Further flags of `buildah build`.
            context: The folder whose files are copied.
            dockerfile: The Dockerfile.
            lock: The lock in `requirements/` whose packages are installed.
        """
        # Layers would each be a copy of all files.
        self._buildah(
            "build",
            "--isolation=chroot",
            "--network=host",  # this process's, so a loopback
            "--pull-never",
            "--layers=false",
            "--format=docker",  # OCI's own knows no health check
            f"--volume={_FETCHED / 'packages'}:/packages:ro",
            f"--build-arg=LOCK={lock}",
            f"--volume={_wheels(lock)}:/wheels:ro",
            f"--secret=id=pip.conf,src={self.folder / 'pip.conf'}",
            f"--file={dockerfile}",
            f"--tag={tag}",
            *flags,
            str(context),
        )
        return tag

    def save(self, tag: str, path: Path) -> None:
        """Write an image that was built here as an archive for `docker load`."""
        self._buildah("push", "--quiet", tag, f"docker-archive:{path}")

    def unpack(self, tag: str) -> Image:
        """Return an image that was built here, unpacked."""
        config = json.loads(self._buildah("inspect", "--type=image", tag))["Docker"]["config"]
        pushed = self.folder / "pushed"
        self._buildah("push", "--quiet", tag, f"dir:{pushed}")
        manifest = json.loads((pushed / "manifest.json").read_text(encoding="utf-8"))
        shutil.rmtree(pushed)
        container = self._buildah("from", "--pull-never", tag).strip()
        root = Path(self._buildah("mount", container).strip())
        return Image(root, config, [layer["size"] for layer in manifest["layers"]])

    def _buildah(self, command: str, *arguments: str) -> str:
        flags = [f"--registries-conf={self.folder}/registries.conf", f"--signature-policy={self.folder}/policy.json"]
        if command in {"inspect", "mount"}:
            flags = []
        done = subprocess.run(
            ["buildah", *flags[:1], command, *flags[1:], *arguments],
            env={
                **os.environ,
                "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
                "TMPDIR": str(self.folder / "temporary"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST,
        )
        assert done.returncode == 0, f"buildah {command} {arguments}:\n{(done.stdout + done.stderr)[-_MOST_SAID:]}"
        return done.stdout


def build_both(builder: Builder, *flags: str, context: Path = ROOT) -> tuple[str, str]:
    """Build the proxy's image and that of the redirect, with these flags, and return their names.

    The build stage, which takes nearly all of the time, is built once: what follows it in the Dockerfile begins from
    the image of that stage.
    """
    dockerfile = context / DOCKERFILE.name
    built = builder.build("imdsproxy:build", "--target=build", *flags, context=context, dockerfile=dockerfile)
    text = dockerfile.read_text(encoding="utf-8")
    rest = builder.folder / "Dockerfile"
    rest.write_text(
        f"ARG BASE={_base()}\nFROM {built} AS build\n{text[text.index(_AFTER_THE_BUILD) :]}", encoding="utf-8"
    )
    proxy = builder.build("imdsproxy:test", *flags, context=context, dockerfile=rest)
    redirect = builder.build("imdsproxy:test-redirect", "--target=redirect", *flags, context=context, dockerfile=rest)
    return proxy, redirect


def build_emulator(builder: Builder, *flags: str, context: Path = ROOT) -> str:
    """Build the emulator's image as that of a release, which signs, and return its name."""
    dockerfile = context / DOCKERFILE.name
    return builder.build(
        "imdsproxy:emulator", "--target=emulator", *flags, context=context, dockerfile=dockerfile, lock="emulator"
    )


def build_plain_emulator(builder: Builder) -> str:
    """Build an emulator's image that does not sign from the stage that `build_both` has built, and return its name."""
    return builder.build("imdsproxy:test-emulator", "--target=emulator", dockerfile=builder.folder / "Dockerfile")


def _base() -> str:
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("ARG BASE=") for line in lines if line.startswith("ARG BASE="))


def _wheels(lock: str) -> Path:
    locked = hashlib.sha256((ROOT / "requirements" / f"{lock}.txt").read_bytes()).hexdigest()
    return _FETCHED / f"{lock}-wheels-{locked[:16]}".removeprefix("run-")


def _main(arguments: Sequence[str]) -> None:
    began = time.monotonic()
    builder = Builder(Path(arguments[0]))
    for image in map(builder.unpack, build_both(builder)):
        sys.stdout.write(f"{image.root}: layers of {image.layers} bytes\n")
    sys.stdout.write(f"{time.monotonic() - began:.0f} s\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
