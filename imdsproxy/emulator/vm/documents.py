"""Changing a document of a machine: known fields only, in their places, and strings as IMDS has them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from imdsproxy.emulator.samples import sample_instance
from imdsproxy.emulator.vm.model import VmError

_ALIKE = 0.7
"""Similarity, 0 to 1, from which a name is offered in place of an unknown one."""
_NEARLY = 0.1
"""How much less alike than the nearest name another may be that is offered too."""
_NEAREST = 3
_ADDRESS = {"privateIpAddress": ""}


def schema() -> dict[str, Any]:
    """Return a document that has every field that the emulator knows, with an element in each list."""
    document = sample_instance()
    document["network"]["interface"][0]["ipv6"]["ipAddress"] = [dict(_ADDRESS)]
    return document


def unknown(name: str, known: Iterable[str], more: Iterable[str] = ()) -> VmError:
    """Return the error about a field that is not known, with the nearest ones that are.

    Args:
        name: What was given.
        known: The fields that could stand there; all are listed if none is near.
        more: Further ones, which are only offered.
    """
    choices = list(known)
    scores = {choice: _similarity(name.lower(), choice.lower()) for choice in (*choices, *more)}
    best = max(scores.values())
    if best < _ALIKE:
        return VmError(f"{name} is not a field; known are {', '.join(choices)}")
    near = sorted((each for each in scores if scores[each] >= best - _NEARLY), key=lambda each: -scores[each])
    return VmError(f"{name} is not a field; did you mean {' or '.join(near[:_NEAREST])}?")


def _similarity(given: str, known: str) -> float:
    """Return how alike two dotted names are, from 0 to 1: as a whole, or in their last words."""
    last = difflib.SequenceMatcher(None, given.rpartition(".")[2], known.rpartition(".")[2]).ratio()
    return (last + difflib.SequenceMatcher(None, given, known).ratio()) / 2


def merged(current: Any, new: Any, known: Any, name: str) -> Any:
    """Return a part of a document with new values in it.

    Args:
        current: The part as it is; None if the document lacks it.
        new: The new values: an object is merged, a list and a value replace what is there.
        known: The same part of the `schema`.
        name: The dotted name of the part, for errors.

    Raises:
        VmError: A field is unknown, or a value is of another kind than its field.
    """
    if isinstance(known, dict):
        if not isinstance(new, Mapping):
            raise VmError(f"{name} has fields of its own, as {name}.{next(iter(known))}; {new!r} is no object")
        return _merged_object(current or {}, new, known, name)
    if isinstance(known, list):
        if not isinstance(new, list):
            raise VmError(f"{name} is a list; write it as a JSON list, not {new!r}")
        return [merged(None, item, _element(known, item), f"{name}.{index}") for index, item in enumerate(new)]
    if isinstance(new, Mapping | list):
        raise VmError(f"{name} is a single value; write text, a number, true or false, not {new!r}")
    return as_text(new)


def _merged_object(current: Mapping[str, Any], new: Mapping[str, Any], known: dict[str, Any], name: str) -> Any:
    result = dict(current)
    every = {**current, **known}  # a captured document can have fields that are newer than the schema
    for key, value in new.items():
        if key not in every:
            raise unknown(f"{name}.{key}", [f"{name}.{each}" for each in every])
        changed = merged(current.get(key), value, every[key], f"{name}.{key}")
        if key in result:
            result[key] = changed
        else:
            result = _inserted(result, key, changed)
    return result


def _element(known: list[Any], item: Any) -> Any:
    """Return the schema of an element; a captured list can be empty, and then accepts what is given."""
    return known[0] if known else item


def _inserted(fields: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the fields with a new one before the first that follows it in the alphabet."""
    before = {name: each for name, each in fields.items() if name.lower() < key.lower()}
    after = {name: each for name, each in fields.items() if name not in before}
    return {**before, key: value, **after}


def as_text(value: Any) -> str:
    """Return a primitive as the instance document has it: as a string, `true` and `false` in lower case."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def nested(path: list[str], value: Any, current: Any, known: Any, name: str) -> Any:
    """Return a new value of the part `name` in which one element, found by `path`, has the given value.

    A list is returned with all its elements, because `merged` replaces a list.
    """
    if not path:
        return value
    head, *rest = path
    where = f"{name}.{head}"
    if isinstance(known, list):
        elements = list(current or [])
        if not head.isdecimal() or int(head) >= len(elements):
            raise VmError(f"{where} does not exist; {name} has {len(elements)} elements, counted from 0")
        index = int(head)
        changed = nested(rest, value, elements[index], known[0], where)
        elements[index] = merged(elements[index], changed, known[0], where)
        return elements
    if not isinstance(known, dict):
        raise VmError(f"{where} does not exist, because {name} is a single value; set {name}")
    every = {**(current or {}), **known}
    if head not in every:
        raise unknown(where, leaves(known, name))
    return {head: nested(rest, value, (current or {}).get(head), every[head], where)}


def part_at(document: Any, path: list[str]) -> Any:
    """Return the part of a document that a path leads to, None if there is none; each element stands for its list."""
    for step in path:
        if isinstance(document, list):
            document = document[0] if document else None
        else:
            document = document.get(step) if isinstance(document, Mapping) else None
    return document


def leaves(known: Any, name: str) -> list[str]:
    """Return the dotted names of all parts below a part of the `schema`, with 0 as the index of every list."""
    if isinstance(known, list):
        return leaves({"0": known[0]}, name)
    if not isinstance(known, dict):
        return []
    found = []
    for key, child in known.items():
        found += [f"{name}.{key}", *leaves(child, f"{name}.{key}")]
    return found


def with_tags(compute: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Make `tags` and `tagsList` say the same, whichever of them was given.

    Returns:
        What was given, with `tags` as text and `tagsList` if the machine has one, and the unchanged `compute`.

    Raises:
        VmError: Tags in a form that cannot be read.
    """
    result = dict(given)
    if "tagsList" in given:
        pairs = [_pair(each) for each in _list(given["tagsList"])]
    elif isinstance(given.get("tags"), Mapping):
        pairs = [(str(key), as_text(value)) for key, value in given["tags"].items()]
    elif "tags" in given:
        pairs = [(key, value) for key, _, value in (each.partition(":") for each in _split(given["tags"]))]
    else:
        return result, compute
    if not isinstance(given.get("tags"), str):
        result["tags"] = ";".join(f"{key}:{value}" for key, value in pairs)
    if "tagsList" in compute or "tagsList" in given:
        result["tagsList"] = [{"name": key, "value": value} for key, value in pairs]
    return result, compute


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise VmError(f'compute.tagsList is a list, as [{{"name":"env","value":"test"}}], not {value!r}')
    return value


def _pair(entry: Any) -> tuple[str, str]:
    if not isinstance(entry, Mapping) or set(entry) != {"name", "value"}:
        raise VmError(f"an element of compute.tagsList has a name and a value, unlike {entry!r}")
    return as_text(entry["name"]), as_text(entry["value"])


def _split(tags: Any) -> list[str]:
    if not isinstance(tags, str):
        raise VmError(f"compute.tags is text, as name:value;name:value, or an object, not {tags!r}")
    return [each for each in tags.split(";") if each]
