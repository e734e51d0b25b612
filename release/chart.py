"""The Helm chart as an archive, by Helm itself (`helm-python-sdk`)."""

from __future__ import annotations

import gzip
import tarfile
from io import BytesIO
from pathlib import Path

from release.source import CHART, ReleaseError


def package(source: Path, into: Path, epoch: int) -> Path | None:
    """Package the chart of a source folder, and return the archive's path; None if there is no chart."""
    folder = source / CHART
    if not (folder / "Chart.yaml").exists():
        return None
    try:
        import helm_python  # noqa: PLC0415  # only where there is a chart
    except ImportError:
        raise ReleaseError(f"{CHART} needs helm-python-sdk, which has no wheel for this machine") from None
    archive = Path(helm_python.package(str(folder), destination=str(into)))
    archive.write_bytes(with_time(archive.read_bytes(), epoch))
    return archive


def with_time(archive: bytes, epoch: int) -> bytes:
    """Return a compressed tar archive whose files have this time, because Helm writes the current one."""
    plain = BytesIO()
    with (
        tarfile.open(fileobj=BytesIO(archive)) as before,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda each: each.name):
            member.mtime = epoch
            member.pax_headers = {}
            after.addfile(member, before.extractfile(member))
    return gzip.compress(plain.getvalue(), mtime=epoch)
