"""Merge flags, environment, file and defaults into one frozen object.

`load` is the only reader of the settings' sources. It collects all mistakes and raises them as one `SettingsError`,
with a line for each. A valid but doubtful setting becomes a warning: see `settings.warnings`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from imdsproxy.errors import SettingsError
from imdsproxy.settings.file import read_file
from imdsproxy.settings.model import PREFIX, Settings, environment_name, flag_name, form
from imdsproxy.settings.parsers import hint, shown
from imdsproxy.settings.warnings import doubts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

__all__ = ["Loaded", "Settings", "load"]

# The variables that the kubelet sets in every pod of a namespace with a Service called "imdsproxy" ("docker links").
# They share the prefix but are not meant for the proxy. Creating such a Service must not break the next start.
# IMDSPROXY_PORT is among them, but as tcp://10.0.0.1:8254.
_SERVICE_LINK = re.compile(
    PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:[0-9]+")

# From this similarity on (difflib, 0 to 1) a name is suggested ...
_ALIKE = 0.75
# ... and from this one on it counts as misspelt, and is refused even if UNKNOWN_SETTINGS is warn.
_MISSPELT = 0.85


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where they came from."""

    settings: Settings
    sources: Mapping[str, str]
    """For each field its source, such as "flag --port" or "default"."""
    warnings: tuple[str, ...] = ()
    """One line for each setting that is accepted but dangerous, or probably a mistake."""


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    source: str
    title: str


@dataclass(slots=True)
class _Sources:
    """What has been read so far."""

    given: dict[str, _Given] = field(default_factory=dict)
    unknown: list[tuple[str, str, list[str]]] = field(default_factory=list)
    """Names that are not settings: the name, its source, and the names that are known there."""
    mistakes: list[str] = field(default_factory=list)


def load(flags: Mapping[str, str] = MappingProxyType({}), environ: Mapping[str, str] | None = None) -> Loaded:
    """Read the settings. A flag takes precedence over the environment, and that over CONFIG_FILE.

    Args:
        flags: Values by field name.
        environ: The environment; None is the process's own.

    Raises:
        SettingsError: A line for each mistake.
    """
    sources = _Sources()
    _take_environment(sources, os.environ if environ is None else environ)
    _take_flags(sources, flags)
    _take_file(sources)
    warnings = _judge_unknown(sources)
    values: dict[str, Any] = {name: item.value for name, item in sources.given.items()}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        sources.mistakes += _sentences(error, sources.given)
        settings = Settings()
    if sources.mistakes:
        raise SettingsError("\n".join(sources.mistakes))
    origins = {name: sources.given[name].source if name in sources.given else "default" for name in values_of(settings)}
    return Loaded(settings, MappingProxyType(origins), (*warnings, *doubts(settings)))


def values_of(settings: Settings) -> Iterable[str]:
    """Return the names of all fields, in the order in which they are documented."""
    return type(settings).model_fields


def _take_environment(sources: _Sources, environ: Mapping[str, str]) -> None:
    fields = {environment_name(name): name for name in Settings.model_fields}
    for name, value in environ.items():
        # Names are compared without case, so that imdsproxy_port is refused instead of silently ignored.
        if not name.upper().startswith(PREFIX) or _SERVICE_LINK.fullmatch(name):
            continue
        if name == environment_name("port") and _SERVICE_ADDRESS.fullmatch(value.strip()):
            continue
        if name in fields:
            sources.given[fields[name]] = _Given(value.strip(), f"environment {name}", name)
        else:
            sources.unknown.append((name, "", list(fields)))


def _take_flags(sources: _Sources, flags: Mapping[str, str]) -> None:
    for name, value in flags.items():
        flag = flag_name(name)
        if name in Settings.model_fields:
            title = f"{environment_name(name)} (flag {flag})"
            sources.given[name] = _Given(value.strip(), f"flag {flag}", title)
        else:
            sources.mistakes.append(_not_a_setting(flag, "", map(flag_name, Settings.model_fields)))


def _take_file(sources: _Sources) -> None:
    named = sources.given.get("config_file")
    if named is None or not named.value:
        return
    path = str(named.value)
    try:
        content = read_file(path)
    except ValueError as error:
        rule = form("config_file").rule
        sources.mistakes.append(f'{named.title} is "{shown(path)}", but must be {rule}: {shown(error, 200)}')
        return
    known = [name for name in Settings.model_fields if name != "config_file"]
    for name, value in content.items():
        if name in known:
            title = f"{environment_name(name)} ({name} in {shown(path)})"
            sources.given.setdefault(name, _Given(value, f"file {path}", title))
        elif isinstance(value, dict) and not value.keys().isdisjoint(known):
            inner = next(iter(value))
            sources.mistakes.append(
                f"[{shown(name)}] in {shown(path)} is a section, and settings must be above all sections: "
                f"move {shown(inner)} to the top of the file, and remove the line of the section"
            )
        else:
            sources.unknown.append((name, f" in {shown(path)}", known))


def _judge_unknown(sources: _Sources) -> list[str]:
    """Add unknown names to the mistakes, or return them as warnings where UNKNOWN_SETTINGS says so."""
    item = sources.given.get("unknown_settings")
    warn = item is not None and str(item.value).lower() == "warn"
    warnings = []
    for name, place, known in sorted(sources.unknown, key=lambda each: each[:2]):
        if warn and not _misspelt(name, known):
            warnings.append(f"{shown(name)}{place} is not a setting of this version, and has no effect")
        else:
            sources.mistakes.append(_not_a_setting(name, place, known))
    return warnings


def _not_a_setting(name: str, place: str, known: Iterable[str]) -> str:
    near = _near(name, known, _ALIKE)
    remedy = f"did you mean {near}?" if near else '"imdsproxy config" lists all settings'
    return f"{shown(name)}{place} is not a setting; {remedy}"


def _near(name: str, known: Iterable[str], alike: float) -> str | None:
    import difflib  # noqa: PLC0415 - costs memory, and is needed only for a mistake

    by_core = {_core(each): each for each in known}
    near = difflib.get_close_matches(_core(name), by_core, 1, alike)
    return by_core[near[0]] if near else None


def _misspelt(name: str, known: Iterable[str]) -> bool:
    """Return whether a name is a misspelt setting: similar to a known name, or the same letters in another order."""
    letters = sorted(_core(name))
    return _near(name, known, _MISSPELT) is not None or any(sorted(_core(each)) == letters for each in known)


def _core(name: str) -> str:
    """Return the name without the common prefix, which would make all names similar."""
    return name.lower().lstrip("-").removeprefix(PREFIX.lower())


def _sentences(error: ValidationError, given: Mapping[str, _Given]) -> list[str]:
    problems: dict[str, ErrorDetails] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(str(problem["loc"][0]), problem)
    return [_sentence(name, problem, given) for name, problem in problems.items()]


def _sentence(name: str, problem: ErrorDetails, given: Mapping[str, _Given]) -> str:
    item = given.get(name) or _Given(problem["input"], "default", environment_name(name))
    detail = str(problem.get("ctx", {}).get("error", "")) or hint(item.value)
    rule = form(name).rule + (f": {detail}" if detail else "")
    value = "unset" if item.value is None else f'"{shown(item.value)}"'
    return f"{item.title} is {value}, but must be {rule}"
