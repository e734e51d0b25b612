"""Make a release of the commit that is checked out: `python -m release`, or `make release`.

    dist/imdsproxy-VERSION.tar.gz                 the sdist
    dist/imdsproxy-VERSION-py3-none-any.whl       the wheel
    dist/imdsproxy-VERSION.tgz                    the Helm chart
    dist/imdsproxy-VERSION-image-ARCH.tar         the image, for docker load
    dist/imdsproxy-VERSION-redirect-image-ARCH.tar
    dist/imdsproxy-VERSION-emulator-image-ARCH.tar
    dist/imdsproxy-VERSION.cdx.json               the bill of materials
    dist/SHA256SUMS                               checksums of all of them

Everything has the time of the commit. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from release import archives, bill, chart, image
from release.source import ReleaseError, export, inspect

ROOT = Path(__file__).resolve().parent.parent
SUMS = "SHA256SUMS"


def main(arguments: Sequence[str]) -> int:
    """Make the release, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m release", description="Makes a release.", allow_abbrev=False)
    parser.add_argument("--into", type=Path, default=ROOT / "dist", metavar="FOLDER", help="default: dist")
    parser.add_argument("--tag", default="", help="the tag that is released; it must name the version")
    parser.add_argument(
        "--image",
        choices=image.SOURCES,
        default="registry",
        help="what the image is built from: the registry's Debian, what .ci/debian has fetched, or no image",
    )
    parser.add_argument(
        "--source", default="", metavar="URL", help="where the source is published, for the image's label"
    )
    options = parser.parse_args(arguments)
    try:
        for made in make(ROOT, options.into, tag=options.tag, image_from=options.image, source_url=options.source):
            print(made)
    except ReleaseError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"release: {line}\n")
        return 1
    return 0


def make(root: Path, into: Path, *, tag: str = "", image_from: str = "none", source_url: str = "") -> list[Path]:
    """Make every part, and return the paths. Raise ReleaseError before anything is made if the release cannot be."""
    commit = inspect(root, tag)
    image.check(image_from)
    into.mkdir(parents=True, exist_ok=True)
    if left := sorted(each.name for each in into.iterdir()):
        raise ReleaseError(
            f"{into} is not empty ({', '.join(left[:3])}); remove it, so that no earlier file is released"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        export(root, source)
        made = [archives.build(kind, source, into, commit.epoch) for kind in ("sdist", "wheel")]
        if packed := chart.package(source, into, commit.epoch):
            made.append(packed)
        listed = into / f"imdsproxy-{commit.version}.cdx.json"
        listed.write_text(bill.make(source / "requirements", commit), encoding="utf-8")
        made += [listed, *image.build(image_from, source, into, commit, source_url)]
    sums = into / SUMS
    sums.write_text("".join(f"{_digest(path)}  {path.name}\n" for path in sorted(made)), encoding="ascii")
    return [*made, sums]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
