"""The types of setting values, with their bounds and their wording in messages and help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PlainValidator

from imdsproxy.settings import parsers as values
from imdsproxy.settings.parsers import LONGEST_SECONDS


@dataclass(frozen=True, slots=True)
class Form:
    """How a value is described: by its placeholder in help, and by the words after "must be" in an error."""

    placeholder: str
    rule: str


def lowered(value: object) -> object:
    """Return text in lower case, and any other value as it is."""
    return value.lower() if isinstance(value, str) else value


def none_if_empty(value: object) -> object:
    """Return None for an empty text, and any other value as it is."""
    return None if value == "" else value


COUNT = Form("NUMBER", "a whole number from 1 to 100000")
Bytes = Annotated[int, Field(ge=1, le=2**40), Form("BYTES", f"a whole number of bytes from 1 to {2**40}")]
Count = Annotated[int, Field(ge=1, le=100_000), COUNT]
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
