"""The project's documents, as tests read them: their code blocks, their marks and their links.

A block of commands (`sh`, or `console` with its output) is run by `tests/integration/test_documents.py`, unless a
comment on the line above it says why not:

    <!-- run by: tests/system/test_redirect.py::test_client_reaches_the_cache_after_load -->
    <!-- not run: needs systemd -->
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.kit import ROOT

COMMANDS = ("console", "sh")
"""Languages of blocks that are run."""
FOREIGN = ("powershell", "bat")
"""Languages of commands that cannot be run on the machines of the tests, and need a mark."""
PROGRAMS = ("python",)
"""Languages of programs, which a test of their own runs."""
DATA = ("env", "ini", "json", "text", "toml", "yaml")

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (run by|not run): ((?:(?!-->).)+) -->\s*\Z", re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    path: Path
    line: int
    language: str
    text: str
    run_by: tuple[str, ...] = ()
    """Tests that run these commands."""
    not_run: str = ""
    """Why they are not run."""

    def __str__(self) -> str:
        return f"{name(self.path)}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in COMMANDS and not self.run_by and not self.not_run


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def documents() -> list[Path]:
    """Return every Markdown file of the project that a person writes."""
    found = [path for folder in (".", "docs", "benchmarks", "k8s") for path in (ROOT / folder).glob("*.md")]
    return sorted(found)


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a document."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(path, text.count("\n", 0, match.start()) + 1, match[2], match[3], *_mark(text[: match.start()]))
        for match in _FENCE.finditer(text)
    ]


def _mark(before: str) -> tuple[tuple[str, ...], str]:
    match = _MARK.search(before)
    if match is None:
        return (), ""
    words = " ".join(match[2].split())
    return (tuple(words.split(", ")), "") if match[1] == "run by" else ((), words)


def prose(path: Path) -> str:
    """Return a document without its fenced blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def links(path: Path) -> list[tuple[Path, str]]:
    """Return the places within the project that a document links to: a file, and a heading's anchor or nothing."""
    targets = [*_LINK.findall(prose(path)), *_IMAGE.findall(prose(path))]
    local = (target for target in targets if not re.match(r"[a-z]+:", target))
    split = (target.partition("#") for target in local)
    return [((path.parent / file).resolve() if file else path, anchor) for file, _, anchor in split]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} (.*)$", prose(path), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def within(clicks: int, start: Path) -> set[Path]:
    """Return the documents that are at most this many links away from one, itself included."""
    found, edge = {start}, {start}
    for _ in range(clicks):
        edge = {file for path in edge for file, _ in links(path) if file.suffix == ".md"} - found
        found |= edge
    return found
