"""What the living objects of this process hold."""

from __future__ import annotations

import gc
from collections.abc import Iterator


def holders(mark: str) -> list[object]:
    """Return the objects that refer to a text or to bytes with this mark in them.

    Objects that wait for the garbage collector count as well. `mark` itself does not.
    """
    encoded = mark.encode()
    return [holder for holder in _objects() if any(_holds(each, mark, encoded) for each in _parts(holder))]


def shown_by(package: str, mark: str) -> list[object]:
    """Return the objects of a package's classes whose `repr` shows the mark."""
    found = {id(each): each for holder in _objects() for each in (holder, *gc.get_referents(holder))}
    ours = (each for each in found.values() if str(type(each).__module__).partition(".")[0] == package)
    return [each for each in ours if mark in repr(each)]


def _objects() -> list[object]:
    """Return every object, also those that the tests took out of the garbage collector's sight when they began."""
    gc.unfreeze()
    return gc.get_objects()


def _parts(holder: object) -> Iterator[object]:
    return (each for each in gc.get_referents(holder) if type(each) in (bytes, bytearray, str))


def _holds(text: object, mark: str, encoded: bytes) -> bool:
    if isinstance(text, str):
        return text is not mark and mark in text
    return isinstance(text, bytes | bytearray) and text is not encoded and encoded in text
