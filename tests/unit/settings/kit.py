"""Helpers of the tests of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from imdsproxy.errors import SettingsError
from imdsproxy.settings.load import load
from imdsproxy.settings.model import environment_name

PORT = "a whole number from 0 to 65535"
SECONDS = "a number of seconds from 0 to 31536000"
MAP = "path=seconds pairs under /metadata, separated by commas, or a JSON object"
UPSTREAM = "http://host[:port] or unix:/absolute/path"

DEFAULTS = {
    "host": "127.0.0.1",
    "port": 8254,
    "uds": None,
    "admin_host": None,
    "admin_port": None,
    "upstream": "http://169.254.169.254",
    "connect_timeout": 2.0,
    "read_timeout": 30.0,
    "stale_after": 2.0,
    "budget_requests": 5,
    "budget_window": 1.0,
    "identity_budget_requests": None,
    "budget_file": None,
    "header_timeout": 10.0,
    "max_wait": 10.0,
    "retry_statuses": frozenset({410, 429, 500, 502, 503, 504}),
    "retry_base": 1.0,
    "retry_max": 70.0,
    "ttl": (),
    "stale_if_error": (),
    "token_fresh": 3600.0,
    "negative_ttl": 5.0,
    "cache_max_bytes": 16_777_216,
    "max_body_bytes": 1_048_576,
    "require_metadata_header": "credentials",
    "allow": ("/metadata",),
    "deny": (),
    "allowed_hosts": (),
    "access_file": None,
    "access_mode": "enforce",
    "pods_of_node": None,
    "handover_file": None,
    "clients": (),
    "derive": False,
    "warmup": (),
    "log_level": "info",
    "log_format": "text",
    "access_log": False,
    "traces": False,
    "metrics_by_client": 0,
    "unknown_settings": "refuse",
    "config_file": None,
}


def one(name: str, text: str) -> object:
    """Return the value of one setting, given by the environment."""
    return getattr(load({}, {environment_name(name): text}).settings, name)


def refusal(environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> str:
    """Return the error message, which is always one line."""
    with pytest.raises(SettingsError) as caught:
        load(flags or {}, environ)
    text = str(caught.value)
    assert text.replace("\n", "").isprintable()
    return text


def write(folder: Path, content: str | bytes) -> str:
    """Write a settings file, and return its path."""
    path = folder / "settings.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)
