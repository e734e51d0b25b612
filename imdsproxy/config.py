"""The configuration of the proxy: plain frozen values.

`settings/` reads flags, environment and file, and returns one `Config`. Everything else takes a `Config` or single
values of it, so that only `settings/` imports pydantic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.protocol.failures import DEFAULT_RETRIED

PathSeconds = tuple[tuple[str, float], ...]
"""Pairs of a lower-case path prefix and seconds."""


class SettingInForce(NamedTuple):
    """A setting that differs from its default, for people."""

    name: str
    """The environment variable."""
    value: str
    source: str
    """Where it came from, such as "flag --port"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting but the name of the file that was read. `imdsproxy config` prints what each means.

    Times are seconds, sizes bytes. A test holds the defaults to those of `settings.model.Settings`.
    """

    host: str = "127.0.0.1"
    port: int = 8254
    uds: str | None = None
    admin_host: str | None = None
    admin_port: int | None = None
    upstream: Address = IMDS
    connect_timeout: float = 2.0
    read_timeout: float = 30.0
    stale_after: float = 2.0
    budget_requests: int = 5
    budget_window: float = 1.0
    identity_budget_requests: int | None = None
    budget_file: str | None = None
    header_timeout: float = 10.0
    max_wait: float = 10.0
    retry_statuses: frozenset[int] = DEFAULT_RETRIED
    retry_base: float = 1.0
    retry_max: float = 70.0
    ttl: PathSeconds = ()
    stale_if_error: PathSeconds = ()
    token_fresh: float = 3600.0
    negative_ttl: float = 5.0
    cache_max_bytes: int = 16_777_216
    max_body_bytes: int = 1_048_576
    require_metadata_header: Literal["credentials", "always", "never"] = "credentials"
    allow: tuple[str, ...] = ("/metadata",)
    deny: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    access_file: str | None = None
    access_mode: Literal["enforce", "audit"] = "enforce"
    pods_of_node: str | None = None
    handover_file: str | None = None
    derive: bool = False
    warmup: tuple[str, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = False
    traces: bool = False
    metrics_by_client: int = 0
