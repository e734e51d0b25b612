"""A recording: the answers of one IMDS, by target and api-version, and its words for what it refuses."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imdsproxy.emulator.recorded.spans import cut, text_of

INSTANCE = "instance"
WORDS = ("no-header", "no-version", "unknown-version", "leaf", "format", "not-found")
"""What IMDS can refuse: no Metadata header, no api-version or an unknown one, a leaf without format=text, an unknown
format, and an element that does not exist."""


@dataclass(frozen=True, slots=True)
class Said:
    """What IMDS said."""

    status: int
    content_type: str
    body: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Recording:
    """Answers and words of one IMDS.

    Attributes:
        answers: By path below `/metadata/`, format (empty unless the request named one) and api-version (empty without
            one).
        words: By one of `WORDS`.
    """

    answers: Mapping[tuple[str, str, str], Said] = field(default_factory=dict)
    words: Mapping[str, Said] = field(default_factory=dict)

    def answer(self, path: tuple[str, ...], form: str, version: str) -> Said | None:
        """Return what IMDS said to a request, or what follows from its whole instance document.

        Args:
            path: The segments below `/metadata/`.
            form: The format that the request named, empty if none.
            version: Its api-version, empty if it has none.

        Returns:
            The answer, or None if the recording has nothing from which it follows.
        """
        lower = "/".join(path).lower()
        said = self.answers.get((lower, form, version))
        if said is None and form == "json":
            said = self.answers.get((lower, "", version))
        if said is not None or not path or path[0].lower() != INSTANCE:
            return said
        whole = self.answers.get((INSTANCE, "", version))
        if whole is None or whole.status != 200:
            return whole
        return self._part(whole, path[1:], form)

    def _part(self, whole: Said, route: tuple[str, ...], form: str) -> Said | None:
        part = cut(whole.body, route)
        if part is None:
            return self.words.get("not-found")
        if form == "text":
            return Said(200, "text/plain; charset=utf-8", text_of(part))
        if form not in ("", "json"):
            return self.words.get("format")
        if part[0] not in "{[":
            return self.words.get("leaf")
        return Said(200, whole.content_type, part)

    def versions(self, path: str) -> tuple[str, ...]:
        """Return the api-versions that a path answered with 200, oldest first."""
        return tuple(sorted({key[2] for key, said in self.answers.items() if key[0] == path and said.status == 200}))

    def to_mapping(self) -> dict[str, Any]:
        """Return the recording as the values of a file: equal answers of several versions are one entry."""
        together: dict[tuple[str, str, Said], list[str]] = defaultdict(list)
        for (path, form, version), said in self.answers.items():
            together[path, form, said].append(version)
        answers = [
            {"path": path, **({"format": form} if form else {}), "versions": sorted(versions), **_as_mapping(said)}
            for (path, form, said), versions in together.items()
        ]
        return {"answers": answers, "words": {name: _as_mapping(said) for name, said in self.words.items()}}


def _as_mapping(said: Said) -> dict[str, Any]:
    return {"status": said.status, "type": said.content_type, "body": said.body}


def from_mapping(given: Mapping[str, Any]) -> Recording:
    """Return the recording that a file holds. Raise ValueError with the place if it cannot be read."""
    answers: dict[tuple[str, str, str], Said] = {}
    for index, entry in enumerate(_value(given, "answers", list, "", [])):
        where = f"answers.{index}."
        path, form = _value(entry, "path", str, where), _value(entry, "format", str, where, "")
        said = _said(entry, where)
        for version in _value(entry, "versions", list, where):
            answers[path, form, str(version)] = said
    words = _value(given, "words", Mapping, "", {})
    for name in words:
        if name not in WORDS:
            raise ValueError(f"words.{name} is not known; known are {', '.join(WORDS)}")
    return Recording(answers, {name: _said(entry, f"words.{name}.") for name, entry in words.items()})


def _said(entry: Any, where: str) -> Said:
    said = Said(
        _value(entry, "status", int, where), _value(entry, "type", str, where), _value(entry, "body", str, where)
    )
    if said.content_type.startswith("application/json"):
        try:
            json.loads(said.body)
        except (ValueError, RecursionError):
            raise ValueError(f"{where}body is not JSON, as its type says; record it again") from None
    return said


def _value(entry: Any, name: str, kind: type, where: str, default: Any = None) -> Any:
    value = entry.get(name, default) if isinstance(entry, Mapping) else None
    if not isinstance(value, kind):
        raise ValueError(f"{where}{name} cannot be {value!r}; leave a recording as it was written, or record it again")  # noqa: TRY004
    return value


def to_toml(values: Iterable[tuple[str, Any]], recording: Recording, heading: Iterable[str]) -> str:
    """Return the text of a file.

    Args:
        values: Fields of the machine that stand before the recording.
        recording: What IMDS answered.
        heading: Lines of comment.
    """
    lines = [f"# {line}".rstrip() for line in heading]
    lines += [f"{name} = {_toml(value)}" for name, value in values]
    mapping = recording.to_mapping()
    for entry in mapping["answers"]:
        lines += ["", "[[answers]]", *(f"{name} = {_toml(value)}" for name, value in entry.items())]
    for word, entry in mapping["words"].items():
        lines += ["", f"[words.{word}]", *(f"{name} = {_toml(value)}" for name, value in entry.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if not isinstance(value, str):
        return str(value)
    if "'" not in value and value.isprintable():
        return f"'{value}'"
    # JSON's escapes are TOML's, except for a slash, which json.dumps leaves alone, and DEL, which it does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
