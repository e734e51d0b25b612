"""The types of setting values, with their bounds and their wording in messages and help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from imdsproxy.settings import parsers as values
from imdsproxy.settings import places
from imdsproxy.settings.parsers import LONGEST_SECONDS


@dataclass(frozen=True, slots=True)
class Form:
    """How a value is described: by its placeholder in help, and by the words after "must be" in an error."""

    placeholder: str
    rule: str


def _lowered(value: object) -> object:
    """Return text in lower case, and any other value as it is."""
    return value.lower() if isinstance(value, str) else value


def _none_if_empty(value: object) -> object:
    """Return None for an empty text, and any other value as it is."""
    return None if value == "" else value


_HOST = Form("HOST", "an IP address or a host name, without a port")
_PORT = Form("PORT", "a whole number from 0 to 65535")
_COUNT = Form("NUMBER", "a whole number from 1 to 100000")

Switch = Annotated[bool, Form("true|false", "true or false")]
Bytes = Annotated[int, Field(ge=1, le=2**40), Form("BYTES", f"a whole number of bytes from 1 to {2**40}")]
Count = Annotated[int, Field(ge=1, le=100_000), _COUNT]
OptionalCount = Annotated[Count | None, BeforeValidator(_none_if_empty), _COUNT]
FewOrNone = Annotated[int, Field(ge=0, le=100), Form("N", "a whole number from 0 to 100")]
Seconds = Annotated[
    float,
    Field(ge=0, le=LONGEST_SECONDS, allow_inf_nan=False),
    Form("SECONDS", f"a number of seconds from 0 to {LONGEST_SECONDS}"),
]
PositiveSeconds = Annotated[
    float,
    Field(gt=0, le=LONGEST_SECONDS, allow_inf_nan=False),
    Form("SECONDS", f"a number of seconds above 0, at most {LONGEST_SECONDS}"),
]
PathSeconds = Annotated[
    tuple[tuple[str, float], ...],
    PlainValidator(values.read_path_seconds),
    Form("PATH=SECONDS,...", "path=seconds pairs under /metadata, separated by commas, or a JSON object"),
]
Prefixes = Annotated[
    tuple[str, ...],
    PlainValidator(values.read_prefixes),
    Form("PATH,...", "path prefixes such as /metadata/instance, separated by commas, or a JSON array"),
]
Statuses = Annotated[
    frozenset[int],
    PlainValidator(values.read_statuses),
    Form("STATUS,...", "HTTP statuses from 400 to 599, separated by commas, or a JSON array"),
]
Targets = Annotated[
    tuple[str, ...],
    PlainValidator(values.read_targets),
    Form("TARGET,...", "targets under /metadata/, separated by commas, or a JSON array"),
]

Host = Annotated[str, PlainValidator(places.read_host), _HOST]
OptionalHost = Annotated[
    str | None, PlainValidator(lambda value: None if value in (None, "") else places.read_host(value)), _HOST
]
HostNames = Annotated[
    tuple[str, ...],
    PlainValidator(places.read_host_names),
    Form("NAME,...", "host names without scheme, port or wildcard, separated by commas, or a JSON array"),
]
Ranges = Annotated[
    tuple[str, ...],
    PlainValidator(values.read_ranges),
    Form("RANGE,...", "address ranges such as 10.244.3.0/24, separated by commas, or a JSON array"),
]
Port = Annotated[int, Field(ge=0, le=65535), _PORT]
OptionalPort = Annotated[Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(_none_if_empty), _PORT]
Upstream = Annotated[
    str, PlainValidator(places.read_upstream), Form("URL", "http://host[:port] or unix:/absolute/path")
]
OptionalSocket = Annotated[
    str | None,
    PlainValidator(lambda value: None if value is None else places.read_socket_path(value)),
    Form("PATH", "the absolute path of a Unix socket"),
]
OptionalBudgetFile = Annotated[
    str | None,
    PlainValidator(lambda value: None if value is None else places.read_budget_file(value)),
    Form("FILE", "the absolute path of a file"),
]
OptionalHandoverFile = Annotated[
    str | None,
    PlainValidator(lambda value: None if value is None else places.read_handover_file(value)),
    Form("FILE", "the absolute path of a file"),
]
OptionalFile = Annotated[str | None, BeforeValidator(_none_if_empty), Form("FILE", "a TOML file that can be read")]
OptionalAccessFile = Annotated[
    str | None, BeforeValidator(_none_if_empty), Form("FILE", "a TOML or JSON file that can be read")
]
OptionalNode = Annotated[
    str | None,
    PlainValidator(lambda value: None if value is None else places.read_node(value)),
    Form("NAME", "the name of a Kubernetes node: labels of a-z, 0-9 and -, separated by dots"),
]
AccessMode = Annotated[
    Literal["enforce", "audit"], BeforeValidator(_lowered), Form("enforce|audit", "enforce or audit")
]

MetadataRule = Annotated[
    Literal["credentials", "always", "never"],
    BeforeValidator(_lowered),
    Form("credentials|always|never", "credentials, always or never"),
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(_lowered),
    Form("debug|info|warning|error", "debug, info, warning or error"),
]
LogFormat = Annotated[Literal["text", "json"], BeforeValidator(_lowered), Form("text|json", "text or json")]
UnknownSettings = Annotated[Literal["refuse", "warn"], BeforeValidator(_lowered), Form("refuse|warn", "refuse or warn")]
