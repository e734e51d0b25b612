"""Read the text of an access file, TOML or JSON, and find the line of each of its values.

Neither `tomllib` nor `json` states where a value was, so a second reading finds the lines. It needs no grammar of its
own, because it reads only what a parser has accepted. A value within a TOML array has the line of its key.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from imdsproxy.errors import printable

Place = tuple[str | int, ...]
"""The keys and indexes that lead to a value."""

_TABLE = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_PART = re.compile(r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'")
_LEXEME = re.compile(r"\"(?:[^\"\\]|\\.)*\"|[{}\[\],:\n]|[^\s{}\[\],:\"]+")
_NEWLINE = "\n"
_TOML_LINE = re.compile(r"(?P<why>.*) \(at (?P<where>line [0-9]+), column [0-9]+\)", re.DOTALL)


class AccessFileError(ValueError):
    """A mistake in an access file; the text is the reason, with the line if it is known."""

    def __init__(self, reason: str) -> None:
        super().__init__(printable(reason))  # it may quote the file


class Node(NamedTuple):
    """A value of the document and its place."""

    value: object
    place: Place
    lines: Mapping[Place, int]

    def error(self, reason: str) -> AccessFileError:
        """Return the error about this value: the line of the nearest place that is known, and the reason."""
        place = self.place
        while place and place not in self.lines:
            place = place[:-1]
        return AccessFileError(f"line {self.lines.get(place, 1)}: {reason}")

    def table(self, known: Mapping[str, object] | frozenset[str]) -> dict[str, Node]:
        """Return the values of a table by key. Raise AccessFileError for anything else, and for an unknown key."""
        if not isinstance(self.value, dict):
            raise self.error(f"{self.name} must be a table")
        nodes = {key: Node(value, (*self.place, key), self.lines) for key, value in self.value.items()}
        for key, node in nodes.items():
            if key not in known:
                raise node.error(f'"{key}" is not a key here; the keys are {", ".join(sorted(known))}')
        return nodes

    def items(self) -> Iterator[Node]:
        """Yield the items of a list; a single value is a list of one."""
        values = self.value if isinstance(self.value, list) else [self.value]
        if not values:
            raise self.error(f"{self.name} is an empty list; leave it out, or name something")
        for index, value in enumerate(values):
            yield Node(value, (*self.place, index), self.lines)

    def tables(self) -> Iterator[Node]:
        """Yield the items of a list of tables."""
        if not isinstance(self.value, list):
            raise self.error(f"{self.name} must be a list of tables")
        for index, value in enumerate(self.value):
            yield Node(value, (*self.place, index), self.lines)

    def text(self) -> str:
        """Return a text that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(f"{self.name} must be a text that is not empty")
        return self.value

    def word(self, words: frozenset[str]) -> str:
        """Return one of these words, in lower case."""
        text = self.text().lower()
        if text not in words:
            raise self.error(f'{self.name} is "{text[:80]}", and must be {" or ".join(sorted(words))}')
        return text

    @property
    def name(self) -> str:
        """The last key of its place, as messages name the value."""
        return next((str(part) for part in reversed(self.place) if isinstance(part, str)), "the file")


def read_document(text: str, name: str) -> Node:
    """Return the top of a document. `name` is the file's: .toml and .json decide the form, otherwise the text does."""
    ending = name.lower().rpartition(".")[2]
    is_json = ending == "json" or (ending != "toml" and text.lstrip().startswith("{"))
    return _read_json(text) if is_json else _read_toml(text)


def _read_toml(text: str) -> Node:
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = _TOML_LINE.fullmatch(str(error))
        last = f"line {text.count(_NEWLINE) + 1}: {error}"
        why = last if found is None else f"{found['where']}: {found['why']}"
        raise AccessFileError(f"{why} (TOML)") from None
    return Node(tree, (), dict(_toml_lines(text)))


def _read_json(text: str) -> Node:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise AccessFileError(f"line {error.lineno}: {error.msg} (JSON)") from None
    except RecursionError:
        raise AccessFileError("it is nested too deeply (JSON)") from None
    lines: dict[Place, int] = {}
    for place, line in _json_lines(text):
        if place in lines and isinstance(place[-1], str):
            raise AccessFileError(f'line {line}: the key "{place[-1]}" is given twice, first on line {lines[place]}')
        lines.setdefault(place, line)
    return Node(tree, (), lines)


def _toml_lines(text: str) -> Iterator[tuple[Place, int]]:
    """Yield the places of tables and keys with their lines."""
    counts: dict[Place, int] = {}
    here: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        table = _TABLE.fullmatch(line)
        if table is not None:
            here = ()
            parts = _parts(table[2])
            for index, part in enumerate(parts):
                here = (*here, part)
                if index == len(parts) - 1 and table[1] == "[[":
                    counts[here] = counts.get(here, -1) + 1
                if here in counts:
                    here = (*here, counts[here])
            yield here, number
        elif (key := _KEY.match(line)) is not None:
            yield (*here, *_parts(key[1])), number


def _parts(key: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(key)]


def _json_lines(text: str) -> Iterator[tuple[Place, int]]:
    """Yield the places of keys and items with their lines. A key that is given twice is yielded twice."""
    line = 1
    stack: list[str | int | None] = []  # the key or index in each open object or list; None before a key
    for lexeme in _LEXEME.findall(text):
        if lexeme == "\n":
            line += 1
            continue
        if lexeme == ":":
            continue
        if lexeme in "]}":
            stack.pop()
            continue
        if lexeme == ",":
            top = stack[-1]
            stack[-1] = top + 1 if isinstance(top, int) else None
            continue
        if stack and stack[-1] is None:
            stack[-1] = str(json.loads(lexeme))
            yield _place(stack), line
            continue
        if stack and isinstance(stack[-1], int):
            yield _place(stack), line
        if lexeme in "[{":
            stack.append(0 if lexeme == "[" else None)


def _place(stack: list[str | int | None]) -> Place:
    return tuple(part for part in stack if part is not None)
