"""What `imdsproxy config` prints: the settings as a table, as a TOML or environment file, as a Markdown table.

The meanings are the field descriptions of `Settings`.
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

from imdsproxy.config import SettingInForce
from imdsproxy.errors import SettingsError
from imdsproxy.settings.model import Settings, environment_name
from imdsproxy.settings.parsers import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imdsproxy.settings.load import Loaded

_MAPS = ("ttl", "stale_if_error")
_NAME_COLUMN = max(map(len, map(environment_name, Settings.model_fields)))
_LEAST_WIDTH = 72
_COMMENT_WIDTH = 100
_TOML_HEAD = """\
Settings of imdsproxy, each with its meaning and its default. IMDSPROXY_CONFIG_FILE, or the flag
--config-file, names the file to read. Flags and environment variables take precedence over the
file. The variable of a setting is IMDSPROXY_ and its name in capitals: IMDSPROXY_PORT for port."""

_ENV_HEAD = """\
Settings of imdsproxy, each with its meaning and its default, for EnvironmentFile= of a systemd unit
and for docker run --env-file. A value is everything from the = to the end of the line. Write no
quotes around it and no comment behind it. Flags take precedence over the environment, and the
environment over the file that IMDSPROXY_CONFIG_FILE names: remove here what is set in that file."""


def table(loaded: Loaded, width: int) -> str:
    """Render every setting: name, value in force, where it came from, and its meaning on the lines below.

    `width` is the terminal's, in characters; under 72 it counts as 72.
    """
    width = max(width, _LEAST_WIDTH)
    rest = width - _NAME_COLUMN - 4
    columns = (_NAME_COLUMN, rest * 5 // 9, rest - rest * 5 // 9)
    lines = [*_row(("NAME", "VALUE", "FROM"), columns)]
    for field, info in Settings.model_fields.items():
        name = environment_name(field)
        value = plain(getattr(loaded.settings, field))
        source = shown(loaded.sources[field]).removesuffix(f" {name}")
        lines += ["", *_row((name, value, source), columns)]
        lines += textwrap.wrap(info.description or "", width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def differing(loaded: Loaded) -> tuple[SettingInForce, ...]:
    """Return the settings that differ from their defaults, with where each came from."""
    return tuple(
        SettingInForce(environment_name(field), plain(value), shown(loaded.sources[field]))
        for field, info in Settings.model_fields.items()
        if (value := getattr(loaded.settings, field)) != info.default
    )


def toml(settings: Settings) -> str:
    """Render a TOML file with the values of `settings`. An unset one becomes a comment."""
    blocks = [_comment(_TOML_HEAD)]
    # A table ends the file's top level, so the maps come last.
    for field in sorted(Settings.model_fields, key=_MAPS.__contains__):
        info = Settings.model_fields[field]
        blocks.append(f"{_explained(info.description, _default(field))}\n{_toml_entry(field, settings)}")
    return "\n\n".join(blocks) + "\n"


def env(settings: Settings) -> str:
    """Render an environment file with the values of `settings`. An unset or empty one becomes a comment.

    Raises:
        SettingsError: systemd and docker would read a value differently.
    """
    blocks = [_comment(_ENV_HEAD)]
    for field, info in Settings.model_fields.items():
        blocks.append(f"{_explained(info.description, plain(info.default))}\n{_env_entry(field, settings)}")
    return "\n\n".join(blocks) + "\n"


def markdown() -> str:
    """Render the Markdown table of name, default and meaning."""
    lines = ["| name | default | meaning |", "|---|---|---|"]
    for field, info in Settings.model_fields.items():
        default = plain(info.default)
        cell = f"`{default}`" if info.default not in (None, ()) else default
        meaning = (info.description or "").replace("|", "\\|")
        lines.append(f"| `{environment_name(field)}` | {cell} | {meaning} |")
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, str, str], widths: tuple[int, int, int]) -> Iterator[str]:
    wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for line in range(max(map(len, wrapped))):
        parts = [
            (cell[line] if line < len(cell) else "").ljust(width) for cell, width in zip(wrapped, widths, strict=True)
        ]
        yield "  ".join(parts).rstrip()


def plain(value: object) -> str:
    """Return a value on one line as the environment has it, or `unset` or `empty`."""
    if value is None:
        return "unset"
    if isinstance(value, tuple | frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        return shown(",".join(map(_scalar, items))) or "empty"
    return shown(_scalar(value))


def _scalar(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float() | int():
            return str(int(value)) if value == int(value) else str(value)
        case (path, seconds):
            return f"{path}={_scalar(seconds)}"
        case _:
            return str(value)


def _default(field: str) -> str:
    default = Settings.model_fields[field].default
    return "unset" if default is None else "empty" if field in _MAPS else _toml_value(default)


def _toml_entry(field: str, settings: Settings) -> str:
    value = getattr(settings, field)
    examples = Settings.model_fields[field].examples or [""]
    if field in _MAPS:
        pairs = [f"{_toml_value(path)} = {_scalar(seconds)}" for path, seconds in value]
        return "\n".join([f"[{field}]", *(pairs or [f"# {examples[0]}"])])
    # A file cannot name another, so the one in force is not written down either.
    if value is None or field == "config_file":
        return f"# {field} = {_toml_value(examples[0])}"
    return f"{field} = {_toml_value(value)}"


def _env_entry(field: str, settings: Settings) -> str:
    name, info, value = environment_name(field), Settings.model_fields[field], getattr(settings, field)
    # The values of the file in force are in `settings` already.
    if field == "config_file" or (value in (None, ()) and value == info.default):
        example = str((info.examples or [""])[0])
        # The examples of maps are TOML's.
        return f"# {name}={example.replace(chr(34), '').replace(' = ', '=') if field in _MAPS else example}"
    text = "" if value is None else _env_value(value)
    # systemd.exec(5) takes a backslash for an escape and quotes off a value's ends; docker takes them as they are.
    if "\\" in text or text.startswith(('"', "'")) or text != text.strip():
        raise SettingsError(f'{name} is "{shown(text)}", which systemd and docker would read differently; use --toml')
    return f"{name}={text}"


def _env_value(value: object) -> str:
    if not isinstance(value, tuple | frozenset):
        return _scalar(value)
    items = sorted(value) if isinstance(value, frozenset) else value
    texts = [_scalar(item) for item in items]
    if any("," in text for text in texts):  # only JSON shows where such an item ends
        return json.dumps(dict(items) if isinstance(items[0], tuple) else texts, separators=(",", ":"))
    return ",".join(texts)


def _toml_value(value: object) -> str:
    if isinstance(value, tuple | frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        return f"[{', '.join(map(_toml_value, items))}]"
    if isinstance(value, str):
        # A JSON string is also a TOML string, except that TOML requires DEL to be escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return _scalar(value)


def _explained(meaning: str | None, default: str) -> str:
    return f"{_comment(textwrap.fill(meaning or '', _COMMENT_WIDTH))}\n{_comment(f'Default: {default}')}"


def _comment(text: str) -> str:
    return textwrap.indent(text, "# ", lambda _: True)
