"""The result files: tables, picture and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import Findings
from benchmarks.report import picture, tables

_HEAD = "# The newest figures\n\nWritten by `make bench`.\n\n![The same as a picture](newest.svg)\n"


def write(folder: Path, described: Mapping[str, str], findings: Findings, document: Mapping[str, Any]) -> None:
    """Write newest.md, newest.svg and newest.json into a folder."""
    text = f"{_HEAD}\n{tables.markdown(described, findings)}\n"
    (folder / "newest.md").write_text(text, encoding="utf-8")
    (folder / "newest.svg").write_text(picture.draw(described, findings), encoding="utf-8")
    (folder / "newest.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
