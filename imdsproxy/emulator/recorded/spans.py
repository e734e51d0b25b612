"""Reading JSON without losing its bytes: cutting a part out, and replacing single strings.

Parsing and writing JSON again would change spaces, escapes and numbers, and a recording is played back to the byte.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def members(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the start and the end of each member of the object or list that begins at `start`.

    The text is known to be JSON. The elements of a list are named by their index.
    """
    is_object = text[start] == "{"
    at, index = _after_space(text, start + 1), 0
    while text[at] not in "}]":
        if is_object:
            name, at = _DECODER.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)  # behind the colon
        else:
            name = str(index)
        _, end = _DECODER.raw_decode(text, at)
        yield name, at, end
        index += 1
        at = _after_space(text, end)
        at = _after_space(text, at + 1) if text[at] == "," else at


def cut(text: str, route: tuple[str, ...]) -> str | None:
    """Return the part of a JSON text that a route leads to, as it is written there.

    Args:
        text: A JSON document.
        route: Names of members, compared without case, and indices.

    Returns:
        The part, or None if the route leads nowhere.
    """
    start = _after_space(text, 0)
    _, end = _DECODER.raw_decode(text, start)
    for step in route:
        if text[start] not in "{[":
            return None
        found = ((at, to) for name, at, to in members(text, start) if name.lower() == step.lower())
        start, end = next(found, (-1, -1))
        if start < 0:
            return None
    return text[start:end]


def text_of(part: str) -> str:
    """Return a part as `format=text` has it: a leaf's value, or one child a line, containers with a slash."""
    if part[0] in "{[":
        return "\n".join(name + "/" * (part[at] in "{[") for name, at, _ in members(part, 0))
    value: Any = json.loads(part)
    return value if isinstance(value, str) else part


def rewritten(text: str, change: Callable[[tuple[str, ...], str], str]) -> str:
    """Return a JSON text with other strings as values; what does not change keeps its bytes.

    Args:
        text: A JSON document.
        change: Returns the new value of a string, from the names that lead to it, without indices, and its value.
    """
    pieces: list[str] = []
    copied = 0

    def visit(path: tuple[str, ...], start: int, end: int) -> None:
        nonlocal copied
        if text[start] in "{[":
            for name, at, to in members(text, start):
                visit((*path, name) if text[start] == "{" else path, at, to)
        elif text[start] == '"':
            value = json.loads(text[start:end])
            new = change(path, value)
            if new != value:
                pieces.extend((text[copied:start], json.dumps(new, ensure_ascii=False)))
                copied = end

    start = _after_space(text, 0)
    visit((), start, _DECODER.raw_decode(text, start)[1])
    return "".join((*pieces, text[copied:]))


def strings(text: str) -> list[tuple[tuple[str, ...], str]]:
    """Return every string that is a value of a JSON text, with the names that lead to it."""
    found: list[tuple[tuple[str, ...], str]] = []

    def note(path: tuple[str, ...], value: str) -> str:
        found.append((path, value))
        return value

    rewritten(text, note)
    return found


def routes(text: str) -> list[tuple[tuple[str, ...], str]]:
    """Return the route to every part of a JSON text, the whole included, with the part as it is written."""
    found: list[tuple[tuple[str, ...], str]] = []

    def visit(route: tuple[str, ...], start: int, end: int) -> None:
        found.append((route, text[start:end]))
        if text[start] in "{[":
            for name, at, to in members(text, start):
                visit((*route, name), at, to)

    start = _after_space(text, 0)
    visit((), start, _DECODER.raw_decode(text, start)[1])
    return found
