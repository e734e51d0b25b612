"""How flags, environment, file and defaults become one frozen object.

`load` is the only reader of the settings' sources. Whatever is wrong with them is translated here, and
nowhere else, into one `SettingsError`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from imdsproxy.errors import SettingsError
from imdsproxy.settings.model import PREFIX, Settings, environment_name, flag_name, form
from imdsproxy.settings.parsers import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

__all__ = ["Loaded", "Settings", "load"]

# What the kubelet puts into every pod of a namespace that has a Service called "imdsproxy" (its "docker
# link" variables). They share the prefix without being meant for the proxy, and creating such a Service
# must not break the next start. IMDSPROXY_PORT is among them, but then as tcp://10.0.0.1:8254.
_SERVICE_LINK = re.compile(
    PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")

_ALIKE = 0.75
"""From this similarity on (difflib, 0 to 1) a name is taken for a misspelt one."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each field where its value came from, such as "flag --port" or "default"."""

    settings: Settings
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    source: str
    title: str


def load(flags: Mapping[str, str] = MappingProxyType({}), environ: Mapping[str, str] | None = None) -> Loaded:
    """Read flags (by field name), then environment, then CONFIG_FILE; the first to name a setting wins.

    `environ` is the process's own where it is None. Raises SettingsError.
    """
    given = _environment(os.environ if environ is None else environ) | _flags(flags)
    if "config_file" in given and given["config_file"].value:
        given = _file(given["config_file"]) | given
    values: dict[str, Any] = {field: item.value for field, item in given.items()}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_sentence(error, given)) from None
    sources = {field: given[field].source if field in given else "default" for field in Settings.model_fields}
    return Loaded(settings, MappingProxyType(sources))


def _flags(flags: Mapping[str, str]) -> dict[str, _Given]:
    _refuse_unknown(map(flag_name, flags), map(flag_name, Settings.model_fields))
    return {
        field: _Given(value.strip(), f"flag {flag}", f"{environment_name(field)} (flag {flag})")
        for field, value in flags.items()
        for flag in (flag_name(field),)
    }


def _environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    fields = {environment_name(field): field for field in Settings.model_fields}
    # Any case is looked at, so that imdsproxy_port is refused rather than silently without effect.
    ours = {
        name: value.strip()
        for name, value in environ.items()
        if name.upper().startswith(PREFIX)
        and not _SERVICE_LINK.fullmatch(name)
        and not (name == environment_name("port") and _SERVICE_ADDRESS.fullmatch(value))
    }
    _refuse_unknown(ours, fields)
    return {fields[name]: _Given(value, f"environment {name}", name) for name, value in ours.items()}


def _file(named: _Given) -> dict[str, _Given]:
    # Its import costs memory that only those with a file need to pay.
    import tomllib  # noqa: PLC0415

    path = str(named.value)
    refusal = f'{named.title} is "{shown(path)}", but must be {form("config_file").rule}: '
    try:
        # Editors on Windows may begin a file with a byte order mark.
        content = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(refusal + shown(error.strerror or error)) from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(refusal + shown(error)) from None
    known = Settings.model_fields.keys() - {"config_file"}
    _refuse_unknown(content, known, f" in {shown(path)}")
    return {
        field: _Given(_as_text(value), f"file {path}", f"{environment_name(field)} ({field} in {shown(path)})")
        for field, value in content.items()
    }


def _as_text(value: object) -> object:
    """Turn a TOML scalar into its text, so that `port = true` is no port although Python counts with it."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, list | dict) else str(value)


def _refuse_unknown(names: Iterable[str], known: Iterable[str], place: str = "") -> None:
    by_core = {_core(name): name for name in known}
    unknown = sorted(set(names) - set(by_core.values()))
    if not unknown:
        return
    import difflib  # noqa: PLC0415 - costs memory, and is needed only on the way out

    near = difflib.get_close_matches(_core(unknown[0]), by_core, 1, _ALIKE)
    remedy = f"did you mean {by_core[near[0]]}?" if near else '"imdsproxy config" lists what is'
    raise SettingsError(f"{shown(unknown[0])}{place} is not a setting; {remedy}{_and_more(len(unknown) - 1)}")


def _core(name: str) -> str:
    """Return what tells one name from another; the common prefix would make all of them alike."""
    return name.lower().lstrip("-").removeprefix(PREFIX.lower())


def _sentence(error: ValidationError, given: Mapping[str, _Given]) -> str:
    problems: dict[str, ErrorDetails] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(str(problem["loc"][0]), problem)
    field, problem = next(iter(problems.items()))
    item = given.get(field) or _Given(problem["input"], "default", environment_name(field))
    detail = str(problem.get("ctx", {}).get("error", ""))
    rule = form(field).rule + (f": {detail}" if detail else "")
    value = "unset" if item.value is None else f'"{shown(item.value)}"'
    return f"{item.title} is {value}, but must be {rule}{_and_more(len(problems) - 1)}"


def _and_more(count: int) -> str:
    return f" (and {count} more)" if count else ""
