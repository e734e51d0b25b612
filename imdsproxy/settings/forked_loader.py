"""Reading the settings without keeping what reading them takes.

pydantic takes about 12 MiB that a running proxy never needs again. Where the system can fork, a child reads the
settings, hands a `Config` over and ends; elsewhere they are read here. The reader is the same.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from typing import NamedTuple

from imdsproxy.config import Config
from imdsproxy.errors import SettingsError


class ReadConfig(NamedTuple):
    """A configuration, and what its writer should know of it."""

    config: Config
    warnings: tuple[str, ...]
    """One line each; see `settings.warnings`."""


def read_config(flags: Callable[[], Mapping[str, str]], meanwhile: Callable[[], object] = lambda: None) -> ReadConfig:
    """Return what flags, environment and file say, as `settings.load` reads them. Raises SettingsError.

    `flags` is called where the reading takes place, since taking a command line apart needs the settings' names;
    `meanwhile` is called while a child reads. Only for a process that has no thread but its first.
    """
    read: ReadConfig | str | None = None
    if hasattr(os, "fork"):
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover  # it ends without handing its coverage over
            os.close(receive)
            _hand_over(flags, send)
        os.close(send)
        try:
            meanwhile()
        finally:
            with os.fdopen(receive, "rb") as pipe:
                handed = pipe.read()
            os.waitpid(child, 0)
        if handed:
            read = pickle.loads(handed)  # noqa: S301  # our own child wrote it
    if read is None:
        read = _read(flags)
    if isinstance(read, str):
        raise SettingsError(read)
    return read


def _read(flags: Callable[[], Mapping[str, str]]) -> ReadConfig | str:
    """Return the configuration, or the sentence that says what is wrong with it."""
    from imdsproxy.settings.load import load  # noqa: PLC0415  # the import that is not to be kept

    try:
        loaded = load(flags())
    except SettingsError as error:
        return str(error)
    return ReadConfig(loaded.settings.config(), loaded.warnings)


def _hand_over(flags: Callable[[], Mapping[str, str]], send: int) -> None:  # pragma: no cover  # see `read`
    status = 1
    try:
        with os.fdopen(send, "wb") as pipe:
            pickle.dump(_read(flags), pipe)
        status = 0
    finally:
        os._exit(status)  # not by the parent's exit handlers, nor with its buffers
