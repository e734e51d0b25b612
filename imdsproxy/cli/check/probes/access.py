"""The access file as a start would read it, and what watching pods needs. Nothing is asked of the API server."""

from __future__ import annotations

import asyncio
import os

from imdsproxy.access.loading import rules_in_force
from imdsproxy.access.rules import Mode
from imdsproxy.cli.check.facts import Access
from imdsproxy.clock import Clock
from imdsproxy.config import Config
from imdsproxy.errors import SettingsError
from imdsproxy.parts.extras import watch_pods


def look_at_access(config: Config) -> Access | None:
    """Return what the access file says, or None if there is none."""
    path = config.access_file
    if path is None:
        return None
    if os.path.exists(path) and not os.access(path, os.R_OK):  # noqa: PTH110  # text
        return Access(path, problem="denied", words="this user may not read it")
    try:
        rules, warnings = rules_in_force(path, pods_known=config.pods_of_node is not None)
    except SettingsError as error:
        return Access(path, problem="unusable", words=str(error).partition(": ")[2] or str(error))
    mode = Mode.AUDIT if config.access_mode == "audit" and rules.mode is Mode.ENFORCE else rules.mode
    default = "allow" if rules.default_allows else "deny"
    named = tuple(warning.partition(": ")[2] for warning in warnings)
    return Access(path, rules=len(rules.rules), mode=mode.value, default=default, warnings=named)


def look_at_pods(config: Config, clock: Clock) -> str:
    """Return why the pods of the node cannot be watched, or the empty string."""
    if config.pods_of_node is None:
        return ""
    try:
        watch = watch_pods(config.pods_of_node, clock)
    except SettingsError as error:
        return str(error)
    asyncio.run(watch.close())
    return ""
