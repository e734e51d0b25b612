"""The composition root: one `Config` becomes one application.

Only this module hands the settings to the parts that use them.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from imdsproxy.budget.workers import NoPlaceError, hold_alone, is_worker, shared_path
from imdsproxy.clock import Clock, SystemClock
from imdsproxy.config import Config, SettingInForce
from imdsproxy.errors import ImdsproxyError, SettingsError
from imdsproxy.ops import logs
from imdsproxy.ops.access_log import log_request
from imdsproxy.ops.readiness import Readiness
from imdsproxy.ops.start_errors import report
from imdsproxy.ops.status_reader import About, StatusReader
from imdsproxy.parts.parts import Parts, build
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.protocol.client_ranges import ClientRanges
from imdsproxy.server.application import Application
from imdsproxy.upstream.client import UpstreamClient

logger = logging.getLogger(__name__)

ApplicationType = TypeVar("ApplicationType", bound=Application)

_START_FAILED = 2
_GUNICORN_GIVES_UP = 4  # Arbiter.APP_LOAD_ERROR


def create_app(
    config: Config | None = None, clock: Clock | None = None, settings: tuple[SettingInForce, ...] = ()
) -> Application:
    """Make the application.

    Args:
        config: The configuration; None reads the environment, as for `uvicorn --factory`.
        clock: The clock; None uses the machine's.
        settings: The settings that differ from their defaults, for the status. They are read with the environment.

    Raises:
        SystemExit: A setting of the environment cannot be used; one line on standard error names it. The status is 2,
            or under gunicorn the status that keeps it from restarting the worker.
    """
    clock = clock or SystemClock()
    if config is not None:
        return _application(config, clock, settings)
    from imdsproxy.settings.load import load  # noqa: PLC0415  # only where it is needed
    from imdsproxy.settings.log_format import log_format_of  # noqa: PLC0415  # the same
    from imdsproxy.settings.report import differing  # noqa: PLC0415  # the same

    shared = False
    try:
        loaded = load()
        config = loaded.settings.config()
        logs.configure(config.log_level, config.log_format)
        for warning in loaded.warnings:
            logger.warning(warning)
        if config.budget_file is None and is_worker():
            shared = True
            config = replace(config, budget_file=_file_of_workers(config))
            logger.info("budget shared with the server's other workers", extra={"fields": {"file": config.budget_file}})
        return _application(config, clock, differing(loaded))
    except ImdsproxyError as error:
        if shared:
            error = _no_workers(str(error))
        report(error, log_format_of() if config is None else config.log_format)
        raise SystemExit(_GUNICORN_GIVES_UP if "gunicorn.arbiter" in sys.modules else _START_FAILED) from None


def _application(config: Config, clock: Clock, settings: tuple[SettingInForce, ...]) -> Application:
    upstream = UpstreamClient(
        config.upstream,
        connect_timeout=config.connect_timeout,
        read_timeout=config.read_timeout,
        max_body_bytes=config.max_body_bytes,
    )
    parts = build(config, upstream, clock, secrets.token_bytes(16))
    if parts.traces is None:
        return assemble(config, parts, clock, upstream.close, Application, settings=settings)
    from imdsproxy.server.traced import TracedApplication  # noqa: PLC0415  # only where traces are exported

    application = partial(TracedApplication, traces=parts.traces)
    return assemble(config, parts, clock, upstream.close, application, settings=settings)


def assemble(  # noqa: PLR0913  # the parts it joins
    config: Config,
    parts: Parts,
    clock: Clock,
    close_upstream: Callable[[], Awaitable[None]],
    application: Callable[..., ApplicationType],
    *,
    settings: tuple[SettingInForce, ...] = (),
) -> ApplicationType:
    """Join parts into an application, which closes them when its lifespan ends."""

    async def close() -> None:
        await parts.proxy.fetches.close()
        await close_upstream()
        if parts.pods is not None:
            await parts.pods.close()
        parts.close()
        if traces is not None:
            await traces.close()

    traces = parts.traces
    pods = parts.pods
    readiness = Readiness(parts.proxy, config.warmup, (lambda: None) if pods is None else lambda: pods.obstacle)
    parts.metrics.watch_readiness(lambda: readiness.obstacle is None)
    return application(
        proxy=parts.proxy,
        metrics=parts.metrics,
        history=parts.history,
        readiness=readiness,
        status=StatusReader(
            parts.proxy, readiness, parts.history, clock, About(str(config.upstream), config.budget_window, settings)
        ),
        accepted_hosts=parts.accepted_hosts,
        shares=parts.shares,
        clock=clock,
        observers=[
            parts.metrics.observe,
            *([log_request] if config.access_log else []),
            *([traces.observe] if traces is not None else []),
        ],
        names_clients=config.access_log,
        clients=ClientRanges(config.clients) if config.clients else None,
        on_drop=parts.forget_kept,
        observe_refusal=parts.observe_refusal,
        reload_access=parts.reload_access,
        memberships=parts.memberships,
        peers=PeerLookup(
            None if parts.pods is None else parts.pods.find,
            programs=config.access_log or parts.proxy.access is not None,
        ),
        start=(lambda: None) if parts.pods is None else parts.pods.start,
        close=close,
    )


def _file_of_workers(config: Config) -> str | None:
    """Return the file through which a server's workers share their budget, or None if only one worker may run."""
    try:
        if sys.platform != "linux":
            hold_alone(config.upstream)
            return None
        return shared_path(config.upstream)
    except (NoPlaceError, OSError) as error:
        raise SettingsError(str(error)) from None


def _no_workers(why: str) -> SettingsError:
    return SettingsError(
        f"worker processes must share one budget, and these cannot: {why}. "
        "Run one worker, or on Linux set IMDSPROXY_BUDGET_FILE to a file that all workers can write to"
    )
