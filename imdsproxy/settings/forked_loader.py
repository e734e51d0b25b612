"""Read the settings in a child process, so that the memory this takes is not kept.

pydantic takes about 12 MiB that a running proxy never needs again. On a system with fork, a child reads the settings,
sends a `Config` through a pipe and exits. On other systems this process reads them itself, in the same way.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
from collections.abc import Callable, Mapping
from typing import NamedTuple

from imdsproxy.config import Config, SettingInForce
from imdsproxy.errors import SettingsError

NEEDED_BY_BOTH = (
    *("importlib.resources", "pathlib", "secrets", "tempfile", "uuid"),
    "imdsproxy.protocol.client_ranges",
)
"""What reading the settings and serving both import, with much that these import in turn.

It is imported before the fork, because what each of the two imports for itself takes the time of a single core twice.
"""


class ReadConfig(NamedTuple):
    """A configuration, its warnings, and what was changed."""

    config: Config
    warnings: tuple[str, ...]
    """One line each; see `settings.warnings`."""
    differing: tuple[SettingInForce, ...] = ()
    """The settings that differ from their defaults."""


def read_config(flags: Callable[[], Mapping[str, str]], meanwhile: Callable[[], object] = lambda: None) -> ReadConfig:
    """Return the configuration from flags, environment and file, as `settings.load` reads them.

    Call it only in a process with a single thread.

    Args:
        flags: Called in the process that reads, because parsing a command line needs the settings' names.
        meanwhile: Called while a child reads.

    Raises:
        SettingsError: The settings cannot be used.
    """
    read: ReadConfig | str | None = None
    if hasattr(os, "fork"):
        for name in NEEDED_BY_BOTH:
            importlib.import_module(name)
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover  # it exits without saving its coverage
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
    """Return the configuration, or the message that says what is wrong with it."""
    from imdsproxy.settings.load import load  # noqa: PLC0415  # it takes the memory that is not to be kept
    from imdsproxy.settings.report import differing  # noqa: PLC0415  # the same

    try:
        loaded = load(flags())
    except SettingsError as error:
        return str(error)
    return ReadConfig(loaded.settings.config(), loaded.warnings, differing(loaded))


def _hand_over(flags: Callable[[], Mapping[str, str]], send: int) -> None:  # pragma: no cover  # see `read`
    status = 1
    gc.disable()  # this process ends before a collection is of use
    try:
        with os.fdopen(send, "wb") as pipe:
            pickle.dump(_read(flags), pipe)
        status = 0
    finally:
        os._exit(status)  # without the parent's exit handlers and buffers
