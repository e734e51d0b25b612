"""The newest results, as files that are kept beside the program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import picture, report
from benchmarks.figures import Findings

_HEAD = "# The newest figures\n\nWritten by `make bench`.\n\n![The same as a picture](newest.svg)\n"


def write(folder: Path, described: Mapping[str, str], findings: Findings, document: Mapping[str, Any]) -> None:
    """Write the tables, the picture, and everything as JSON."""
    tables = f"{_HEAD}\n{report.markdown(described, findings)}\n"
    (folder / "newest.md").write_text(tables, encoding="utf-8")
    (folder / "newest.svg").write_text(picture.draw(described, findings), encoding="utf-8")
    (folder / "newest.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
