"""The form of the log before the settings are read, so that a mistake in them is reported in that form."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from imdsproxy.settings.file import read_file

_NAME = "IMDSPROXY_{}"


def log_format_of(arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> str:
    """Return `json` if flags, environment or file say so, and `text` otherwise. Nothing is refused here.

    Args:
        arguments: The command line, without the program and the command.
        environ: The environment; None is the process's own.
    """
    environ = os.environ if environ is None else environ
    found = _given("log_format", arguments, environ)
    if found is None:
        path = _given("config_file", arguments, environ)
        try:
            found = str(read_file(path).get("log_format", "")) if path else ""
        except ValueError:
            found = ""
    return "json" if found.strip().lower() == "json" else "text"


def _given(name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """Return the value of a setting from its last flag or from the environment, or None."""
    flag = f"--{name.replace('_', '-')}"
    for index in range(len(arguments) - 1, -1, -1):
        if arguments[index].startswith(f"{flag}="):
            return arguments[index].partition("=")[2]
        if arguments[index] == flag and index + 1 < len(arguments):
            return arguments[index + 1]
    return environ.get(_NAME.format(name.upper()))
