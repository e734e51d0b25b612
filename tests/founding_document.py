"""Read Microsoft's IMDS page of December 2020, on which the emulator is founded, section by section.

The page is not part of the project. It lies beside a checkout, in `shared/reference/`, or where FOUNDING_DOCUMENT says.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

NAME = "imds-windows-2020-12.ja.md"
MISSING = "the founding document is not beside the checkout"
_HEADING = re.compile(r"#+ <a name=\"([\w-]+)\">")
_FENCE = re.compile(r"\s*```(\w*)")
_TARGET = re.compile(r"http://169\.254\.169\.254(/[^\s\"]*)")


@dataclass
class Section:
    """One section: its code blocks in order, as language and text, and the rows of its tables."""

    blocks: list[tuple[str, str]] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


def find() -> Path | None:
    """Return the path of the page, None if it is not there."""
    named = os.environ.get("FOUNDING_DOCUMENT")
    root = Path(__file__).resolve().parent.parent
    places = [Path(named)] if named else [above / "shared" / "reference" / NAME for above in root.parents]
    return next((path for path in places if path.is_file()), None)


def sections(text: str) -> dict[str, Section]:
    """Return the sections by the name of their heading's anchor."""
    found: dict[str, Section] = defaultdict(Section)
    current = ""
    language: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if language is not None:
            if fence:
                found[current].blocks.append((language, "\n".join(lines)))
                language = None
            else:
                lines.append(line)
        elif fence:
            language, lines = fence[1], []
        elif heading := _HEADING.match(line):
            current = heading[1]
            assert current not in found, f"two sections are called {current}"
            found[current] = Section()
        elif line.startswith("- "):
            found[current].items.append(line[2:].strip())
        elif "|" in line:
            found[current].rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return dict(found)


def targets(block: str) -> list[str]:
    """Return the targets that a block of PowerShell asks IMDS for."""
    return _TARGET.findall(block)
