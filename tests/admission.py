"""Apply a MutatingAdmissionPolicy to a pod, as the API server does.

The expressions are checked and evaluated by Google's CEL. The server gives an expression a type for each place of the
object, `Object.spec.containers` for one, and `JSONPatch`. Here they are messages whose fields are those of the API's
schema, so that a field that the API does not have, or of another type, is refused. Names of messages have no dots, so
`Object.spec.containers` is written `Object__spec__containers` before it is compiled.

A patch of the type ApplyConfiguration is merged by the schema too: lists with keys item by item, objects field by
field.
Not here: defaulting, validation, strategies of other lists, and what the server allows an expression to cost.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
from cel_expr_python import cel  # type: ignore[import-untyped]
from google.protobuf import (  # type: ignore[import-untyped]
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    struct_pb2,
    wrappers_pb2,
)

Json = dict[str, Any]

_TYPE = re.compile(r"\bObject(?:\.\w+)*(?=\{)")
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"string": _FIELD.TYPE_STRING, "integer": _FIELD.TYPE_INT32, "boolean": _FIELD.TYPE_BOOL}


def admitted(policy: Mapping[str, Any], pod: Mapping[str, Any]) -> Json:
    """Return the pod after the policy: changed if every condition holds, otherwise as it came."""
    spec = policy["spec"]
    if not all(_evaluate(one["expression"], pod) for one in spec["matchConditions"]):
        return dict(pod)
    found = copy.deepcopy(dict(pod))
    for mutation in spec["mutations"]:
        if mutation["patchType"] == "JSONPatch":
            found = _patched(found, _evaluate(mutation["jsonPatch"]["expression"], found))
        else:
            applied = _evaluate(mutation["applyConfiguration"]["expression"], found)
            found = _merged(found, applied, _schema("Pod"))
    return found


def _evaluate(expression: str, pod: Mapping[str, Any]) -> Any:
    """Return the value of an expression in plain JSON. An exception with CEL's own words if it has none."""
    pool = _types(frozenset(_TYPE.findall(expression)))
    env = cel.NewEnv(pool, variables={"object": cel.Type.DYN})
    compiled = env.compile(_TYPE.sub(lambda match: _message(match[0]), expression))
    return _plain(compiled.eval(data={"object": pod}).plain_value(), pool)


def _plain(value: Any, pool: descriptor_pool.DescriptorPool) -> Any:
    if isinstance(value, list):
        return [_plain(item, pool) for item in value]
    if hasattr(value, "DESCRIPTOR"):
        return _json(value, pool)
    return value


def _json(message: Any, pool: descriptor_pool.DescriptorPool) -> Any:
    """Return a message as JSON; what is packed into an Any is unpacked."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        name = message.type_url.rpartition("/")[2]
        packed = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))()
        packed.ParseFromString(message.value)
        return _json(packed, pool)
    if message.DESCRIPTOR.full_name.startswith("google.protobuf."):
        return json_format.MessageToDict(message)
    found: Json = {}
    for field, value in message.ListFields():
        if field.message_type is None:
            found[field.name] = list(value) if field.is_repeated else value
        elif field.message_type.GetOptions().map_entry:
            found[field.name] = dict(value)
        else:
            found[field.name] = [_json(item, pool) for item in value] if field.is_repeated else _json(value, pool)
    return found


# The types of an expression


def _message(place: str) -> str:
    return place.replace(".", "__")


@functools.cache
def _types(places: frozenset[str]) -> descriptor_pool.DescriptorPool:
    """Return messages for these places of a pod, and JSONPatch."""
    file = descriptor_pb2.FileDescriptorProto(name="object.proto", syntax="proto2")
    file.dependency.extend(["google/protobuf/any.proto", "google/protobuf/struct.proto"])
    patch = file.message_type.add(name="JSONPatch")
    for number, name in enumerate(("op", "from", "path"), 1):
        patch.field.add(name=name, number=number, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
    patch.field.add(
        name="value", number=4, type=_FIELD.TYPE_MESSAGE, type_name=".google.protobuf.Any", label=_FIELD.LABEL_OPTIONAL
    )
    # Objects within one that the expression makes have types as well, so that no other object fits there.
    inner = {f"{place}.{name}" for place in places for name in _at(place)["properties"]}
    typed = places | {place for place in inner if "properties" in _at(place)}
    for place in sorted(typed):
        message = file.message_type.add(name=_message(place))
        for number, (name, schema) in enumerate(_at(place)["properties"].items(), 1):
            within = f"{place}.{name}"
            _add_field(message, number, schema, within, typed=within in typed)
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, struct_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(message: Any, number: int, schema: Json, place: str, *, typed: bool) -> None:
    name = place.rpartition(".")[2]
    label, kind = _FIELD.LABEL_OPTIONAL, _kind(schema)
    if kind == "array":
        label, schema = _FIELD.LABEL_REPEATED, _resolved(schema["items"])
        kind = _kind(schema)
    if typed:
        message.field.add(
            name=name, number=number, label=label, type=_FIELD.TYPE_MESSAGE, type_name=f".{_message(place)}"
        )
    elif kind in _SCALARS:
        message.field.add(name=name, number=number, label=label, type=_SCALARS[kind])
    elif "additionalProperties" in schema and "properties" not in schema:
        entry = message.nested_type.add(name=f"{name[0].upper()}{name[1:]}Entry")
        entry.options.map_entry = True
        for field, title in enumerate(("key", "value"), 1):
            entry.field.add(name=title, number=field, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
        message.field.add(
            name=name,
            number=number,
            label=_FIELD.LABEL_REPEATED,
            type=_FIELD.TYPE_MESSAGE,
            type_name=f".{message.name}.{entry.name}",
        )
    else:  # a number or a string, or an object that the expression does not make
        message.field.add(
            name=name, number=number, label=label, type=_FIELD.TYPE_MESSAGE, type_name=".google.protobuf.Value"
        )


# The API's schema


@functools.cache
def _definitions() -> Json:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    version = kubernetes_validate.latest_version()
    text = (folder / f"v{version}-local-strict" / "_definitions.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["$defs"])


def _schema(name: str) -> Json:
    return dict(_definitions()[f"io.k8s.api.core.v1.{name}"])


def _resolved(schema: Json) -> Json:
    return _definitions()[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def _kind(schema: Json) -> str:
    kind = _resolved(schema).get("type", "")
    return next(one for one in kind if one != "null") if isinstance(kind, list) else str(kind)


def _at(place: str) -> Json:
    """Return the schema of a place, e.g. Object.spec.containers for one container."""
    schema = _schema("Pod")
    for name in place.split(".")[1:]:
        assert name in schema["properties"], f"the API has no {place}"
        schema = _resolved(schema["properties"][name])
        schema = _resolved(schema["items"]) if "items" in schema else schema
    return schema


# The two kinds of patches


def _merged(live: Any, applied: Any, schema: Json) -> Any:
    """Return what is applied merged into what is there, as server-side apply does."""
    schema = _resolved(schema)
    if isinstance(applied, dict):
        found = dict(live or {})
        for name, value in applied.items():
            found[name] = _merged(found.get(name), value, schema["properties"][name])
        return found
    if isinstance(applied, list):
        (key,) = schema["x-kubernetes-list-map-keys"]
        found = {item[key]: item for item in live or []}
        for item in applied:
            found[item[key]] = _merged(found.get(item[key]), item, schema["items"])
        return list(found.values())
    return applied


def _patched(found: Json, operations: list[Json]) -> Json:
    """Return it after the operations of a JSON Patch (RFC 6902), of which `add` is in use."""
    for operation in operations:
        assert operation["op"] == "add"
        *parents, last = _pointer(operation["path"])
        place: Any = found
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if isinstance(place, list):
            place.insert(len(place) if last == "-" else int(last), operation["value"])
        else:
            place[last] = operation["value"]
    return found


def _pointer(path: str) -> Iterator[str]:
    return (part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:])
