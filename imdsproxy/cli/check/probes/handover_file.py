"""The handover file as it is now. It is only read, and stays for the next proxy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from imdsproxy.cache import handover
from imdsproxy.cache.handover import Situation, UnusableError
from imdsproxy.cache.shares import divide
from imdsproxy.cli.check.facts import HandoverFile
from imdsproxy.clock import Clock, boot_id, is_machine_wide
from imdsproxy.config import Config

assert sys.platform == "linux"  # noqa: S101  # the setting is refused elsewhere; this tells the type checker

from imdsproxy.cache.handover_file import look, obstacle  # noqa: E402  # behind the line above


def look_at_handover_file(path: str, config: Config, clock: Clock) -> HandoverFile:
    """Return the state of a handover file, as a proxy with these settings would find it now."""
    why = obstacle(Path(path))
    if why is None and not is_machine_wide():
        why = "this container has a clock of its own (time_namespaces(7))"
    if why is not None:
        return HandoverFile(path, problem="folder", words=why)
    here = Situation(boot_id(), str(config.upstream), clock.monotonic(), clock.wall())
    try:
        content = look(Path(path), divide(config.cache_max_bytes).entries)
        return HandoverFile(path, None if content is None else len(handover.read(content, here)))
    except PermissionError as error:
        return HandoverFile(path, problem="denied", words=error.strerror or os.strerror(error.errno or 0))
    except (OSError, UnusableError) as error:
        return HandoverFile(path, problem="unused", words=getattr(error, "strerror", None) or str(error))
