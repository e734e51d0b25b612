"""Replacing what is personal in recorded answers, the same value by the same replacement everywhere.

Rules:

1. A text in a field that `personal` does not list as public is replaced, whatever it is.
2. Two texts that differ only in case get the same replacement; a resource id is replaced name by name.
3. A replacement has the form of what it replaces, and is equal to nothing that was replaced.
4. A value that the user keeps is kept wherever it stands.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from imdsproxy.emulator.recorded.personal import TAG_VALUE, TAGS, is_public, within
from imdsproxy.emulator.recorded.spans import rewritten, strings

_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_MAC = re.compile(r"([0-9a-f]{2}[:-]?){5}[0-9a-f]{2}", re.IGNORECASE)
_BASE64_FIELDS = ("userData", "customData")
_TAG = re.compile(r"([^;:]*):([^;]*)(;|$)")


@dataclass(slots=True)
class Redaction:
    """The replacements of one recording.

    Attributes:
        keep: Fields whose values stay, by their dotted names without indices, with all that is below them.
        kept: Those of them that are in the answers.
        replaced: What was replaced: each field with the replacements in it, in order.
    """

    keep: tuple[str, ...] = ()
    kept: set[str] = field(default_factory=set)
    replaced: dict[str, list[str]] = field(default_factory=dict)
    _mapping: dict[str, str] = field(default_factory=dict)
    _originals: set[str] = field(default_factory=set)
    _ambiguous_tags: bool = False
    _serial: dict[str, Iterator[int]] = field(default_factory=dict)

    def learn(self, bodies: Iterable[str]) -> None:
        """Note every text of the answers, so that no replacement is equal to one, and what the user keeps."""
        for body in bodies:
            for path, value in strings(body):
                self._originals.update(part.lower() for part in (value, *value.split("/"), *_tag_values(value)))
                self._ambiguous_tags |= path[:2] == TAG_VALUE[:2] and ";" in value
                if within(path, self.keep):
                    self.kept.update(name for name in self.keep if within(path, (name,)))
                    for part in (value, *_names(value)):
                        self._mapping[part.lower()] = part

    def body(self, text: str, below: tuple[str, ...] = ()) -> str:
        """Return a JSON text without what is personal. Every text of the recording must have been learned.

        Args:
            text: A JSON text.
            below: The names that lead to it, if it is a part of a document.
        """
        return rewritten(text, lambda path, value: self.value((*below, *path), value))

    def value(self, path: tuple[str, ...], value: str) -> str:
        """Return a text, or what replaces it in the field that `path` leads to."""
        if within(path, self.keep) or is_public(path, value):
            return value
        if tuple(name.lower() for name in path) == TAGS:
            new = _TAG.sub(lambda tag: f"{tag[1]}:{self._of(TAG_VALUE, tag[2])}{tag[3]}", value)
            # A text of another form, or in which a value could look like a name, is replaced as a whole.
            new = new if _is_tags(value) and not self._ambiguous_tags else self._of(path, value)
        elif _is_resource_id(value):
            new = "/".join(self._segment(name, before) for before, name in _steps(value))
        else:
            new = self._of(path, value)
        if new != value:
            where = self.replaced.setdefault(".".join(path), [])
            if new not in where:
                where.append(new)
        return new

    def _segment(self, name: str, before: str) -> str:
        """Replace one name of a resource id; the names of types and providers stay."""
        return self._of((before.rstrip("s"),), name) if before else name

    def _of(self, path: tuple[str, ...], value: str) -> str:
        if not value:
            return value
        known = self._mapping.get(value.lower())
        if known is None:
            known = self._mapping[value.lower()] = self._new(path[-1] if path else "text", value)
        return known.upper() if value.isupper() and known.lower() == known and not _GUID.fullmatch(known) else known

    def _new(self, name: str, value: str) -> str:
        make = _maker(name, value)
        serial = self._serial.setdefault(make(0), itertools.count(1))
        return next(new for new in map(make, serial) if new.lower() not in self._originals)


def _maker(name: str, value: str) -> Callable[[int], str]:
    """Return what makes replacements of the same form as a value: of a number, a new text."""
    if _GUID.fullmatch(value):
        return lambda number: f"e0000000-0000-4000-8000-{number:012x}"
    if _MAC.fullmatch(value):
        return lambda number: f"02{number:010X}"
    if (first := _first_address(value)) is not None:
        return lambda number: str(first + number)
    if name in _BASE64_FIELDS:
        return lambda number: f"cmVkYWN0ZWQg{number:04d}"  # "redacted ", and three bytes more
    if name == "keyData":
        return lambda number: f"ssh-rsa {number}"
    return lambda number: f"{name.lower()}-{number}"


def _first_address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address before the replacements of an address; None for a value that is not an address."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return None
    if address.version == 6:
        return ipaddress.IPv6Address("2001:db8::")
    return ipaddress.IPv4Address("10.0.0.0" if address.is_private else "203.0.113.0")


def _steps(resource_id: str) -> Iterator[tuple[str, str]]:
    """Yield each segment of a resource id behind the name of its type, which is empty for a name that stays.

    `/subscriptions/ID/resourceGroups/NAME/providers/NAMESPACE/TYPE/NAME/TYPE/NAME`.
    """
    kind = ""
    for name in resource_id.split("/"):
        if kind:
            yield ("" if kind.lower() == "providers" else kind), name
            kind = ""
        else:
            yield "", name
            kind = name


def _names(value: str) -> list[str]:
    return [name for before, name in _steps(value) if before] if _is_resource_id(value) else []


def _is_resource_id(value: str) -> bool:
    return value.lower().startswith("/subscriptions/")


def _is_tags(value: str) -> bool:
    return "".join(tag[0] for tag in _TAG.finditer(value) if tag[0]) == value


def _tag_values(value: str) -> list[str]:
    return [tag[2] for tag in _TAG.finditer(value)]
