"""What `imdsproxy config` prints: the settings as a table, as a TOML file, as a Markdown table.

Text in, text out; the meanings are the field descriptions of `Settings`.
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

from imdsproxy.settings_fields import Settings, environment_name
from imdsproxy.settings_values import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imdsproxy.settings import Loaded

_MAPS = ("ttl", "stale_if_error")
_NAME_COLUMN = max(map(len, map(environment_name, Settings.model_fields)))
_LEAST_WIDTH = 72
_TOML_WIDTH = 100
_TOML_HEAD = """\
Settings of imdsproxy, each with its meaning and its default. IMDSPROXY_CONFIG_FILE, or the flag
--config-file, names the file to read. Flags and the environment go before it; the environment has
the same names in capitals behind IMDSPROXY_: port is IMDSPROXY_PORT there."""


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


def toml(settings: Settings) -> str:
    """Render a TOML file that sets what `settings` hold; what is unset stands there as a comment."""
    blocks = [_comment(_TOML_HEAD)]
    # A table ends the file's top level, so the maps come last.
    for field in sorted(Settings.model_fields, key=_MAPS.__contains__):
        info = Settings.model_fields[field]
        explained = _comment(textwrap.fill(info.description or "", _TOML_WIDTH))
        blocks.append(f"{explained}\n{_comment(f'Default: {_default(field)}')}\n{_toml_entry(field, settings)}")
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
    """Write a value on one line as the environment would have it; what is unset or empty in a word."""
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


def _toml_value(value: object) -> str:
    if isinstance(value, tuple | frozenset):
        items = sorted(value) if isinstance(value, frozenset) else value
        return f"[{', '.join(map(_toml_value, items))}]"
    if isinstance(value, str):
        # A JSON string is a TOML one but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return _scalar(value)


def _comment(text: str) -> str:
    return textwrap.indent(text, "# ", lambda _: True)
