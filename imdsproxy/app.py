"""The composition root: one `Config` becomes one application.

Only this module hands the settings to the parts that use them.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from imdsproxy.access.enforcement import enforce, reload
from imdsproxy.budget.bucket import Budget
from imdsproxy.budget.limiter import LATEST_START, Limiter
from imdsproxy.budget.workers import NoPlaceError, hold_alone, is_worker, shared_path
from imdsproxy.cache.shares import Shares, divide
from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock, SystemClock
from imdsproxy.config import Config, SettingInForce
from imdsproxy.errors import BudgetFileError, ImdsproxyError, SettingsError
from imdsproxy.ops import logs
from imdsproxy.ops.access_log import log_request
from imdsproxy.ops.history import History
from imdsproxy.ops.metrics import Metrics
from imdsproxy.ops.pod_troubles import PodTroubleLog
from imdsproxy.ops.readiness import Readiness
from imdsproxy.ops.refusals import RefusalLog
from imdsproxy.ops.snapshot import take_snapshot
from imdsproxy.ops.start_errors import report
from imdsproxy.ops.state_metrics import State
from imdsproxy.ops.status_reader import About, StatusReader
from imdsproxy.ops.token_figures import tokens_in_use
from imdsproxy.ops.traces import Traces
from imdsproxy.ops.trouble_log import TroubleLog
from imdsproxy.ops.troubles import Troubles
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.peers.pod_watch import PodWatch
from imdsproxy.peers.pods import HELD_FOR, PodTable
from imdsproxy.policy.policy import Policy
from imdsproxy.protocol.address import IMDS
from imdsproxy.protocol.failures import FailureRules
from imdsproxy.protocol.messages import BudgetClass
from imdsproxy.protocol.request_parser import AcceptedHosts
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.server.application import Application
from imdsproxy.server.traced import TracedApplication
from imdsproxy.upstream.client import SLOW_READ_TIMEOUT, UpstreamClient
from imdsproxy.upstream.fetcher import Fetcher
from imdsproxy.upstream.retry import RetryRules
from imdsproxy.upstream.task import Sender

logger = logging.getLogger(__name__)

ApplicationType = TypeVar("ApplicationType", bound=Application)

_START_FAILED = 2
_GUNICORN_GIVES_UP = 4  # Arbiter.APP_LOAD_ERROR
IDENTITY_CONCURRENT = 5
"""Identity requests that IMDS serves concurrently (Microsoft's IMDS page, 2025)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an application."""

    proxy: Proxy
    metrics: Metrics
    history: History
    accepted_hosts: AcceptedHosts
    shares: Shares
    """How memory is divided among them."""
    close: Callable[[], None] = lambda: None
    """Cancel timers, and release what is shared with other processes."""
    traces: Traces | None = None
    """None unless traces are exported."""
    pods: PodWatch | None = None
    """None unless the pods of a node are watched."""


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
    parts = build(config, upstream, clock)
    application = Application if parts.traces is None else partial(TracedApplication, traces=parts.traces)
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
    readiness = Readiness(parts.proxy, config.warmup)
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
        reload_access=partial(reload, config.access_file, parts.proxy.access),
        peers=PeerLookup(None if parts.pods is None else parts.pods.find),
        start=(lambda: None) if parts.pods is None else parts.pods.start,
        close=close,
    )


def build(config: Config, upstream: Sender, clock: Clock) -> Parts:
    """Build the parts, without starting or connecting anything.

    Raises:
        SettingsError: The access file or the file of a shared budget cannot be used, or traces cannot be exported or
            pods watched as they are set.
    """
    metrics = Metrics()
    pods = None if config.pods_of_node is None else _pods(config.pods_of_node, clock)
    access = enforce(
        config.access_file,
        audit=config.access_mode == "audit",
        observers=(metrics.access.observe, RefusalLog(clock)),
        pod_at=None if pods is None else pods.find,
    )
    limiters, close = _limiters(config, clock)
    address = config.upstream
    instance = secrets.token_hex(8)
    history = History(metrics.by_outcome)
    shares = divide(config.cache_max_bytes)
    store = Store(shares.entries, clock)
    troubles = TroubleLog(Troubles(shares.entries), clock, store.token_life)
    store.on_eviction = troubles.observe_eviction
    traces = _traces(clock) if config.traces else None
    fetcher = Fetcher(
        limiters=limiters,
        upstream=upstream if traces is None else traces.sender(upstream, address),
        failure_rules=FailureRules(config.retry_statuses),
        retry_rules=RetryRules(config.retry_base, config.retry_max),
        clock=clock,
        instance=instance,
        # Behind IMDS's own address may be a node's proxy, but only as long as a redirect is loaded.
        proxied=None if address == IMDS else address.unix is not None,
        stale_after=config.stale_after,
        observers=[
            metrics.observe_attempt,
            lambda attempt: history.observe_attempt(attempt, clock.monotonic()),
            troubles.observe_attempt,
            *([traces.observe_attempt] if traces is not None else []),
        ],
    )
    policy = Policy(
        ttl=dict(config.ttl),
        stale_if_error=dict(config.stale_if_error),
        token_fresh=config.token_fresh,
        negative_ttl=config.negative_ttl,
        require_metadata=config.require_metadata_header,
        allow=config.allow,
        deny=config.deny,
        memory=shares.routes,
    )
    proxy = Proxy(
        policy=policy,
        access=access,
        store=store,
        fetcher=fetcher,
        clock=clock,
        derives=config.derive,
        max_keys=shares.keys,
        on_rendering=history.count_answers,
    )
    metrics.watch(
        State(
            snapshot=lambda: take_snapshot(proxy),
            tokens=lambda: tokens_in_use(store.slots(), history, clock.monotonic()),
            history=history,
            now=clock.monotonic,
        )
    )

    def close_all() -> None:
        troubles.close()
        close()

    return Parts(proxy, metrics, history, _accepted_hosts(config, instance), shares, close_all, traces, pods)


def _pods(node: str, clock: Clock) -> PodWatch:
    try:
        # Imported here, because the client takes memory and time, and is an extra.
        from imdsproxy.peers.kubernetes import pods_of  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"IMDSPROXY_PODS_OF_NODE needs a client of Kubernetes, and {error.name} is not installed: install "
            "imdsproxy with its extra kubernetes (requirements/kubernetes.txt), or unset it"
        ) from None
    return PodWatch(PodTable(node), pods_of(node), clock, PodTroubleLog(clock, node, HELD_FOR))


def _traces(clock: Clock) -> Traces:
    try:
        # Imported here, because OpenTelemetry takes memory and time, and is an extra.
        from imdsproxy.ops.otlp import Otlp  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"IMDSPROXY_TRACES=true needs OpenTelemetry, and {error.name} is not installed: install imdsproxy with its "
            "extra otel (requirements/otel.txt), or set IMDSPROXY_TRACES=false"
        ) from None
    return Traces(Otlp(), clock)


def _limiters(config: Config, clock: Clock) -> tuple[dict[BudgetClass, Limiter], Callable[[], None]]:
    """Return the limiter of each class, and the function that releases the shared budget once no request waits."""
    window, max_wait = config.budget_window, config.max_wait
    sizes: list[tuple[int, int | None]] = [(config.budget_requests, None)]
    if config.identity_budget_requests is not None:
        sizes.append((config.identity_budget_requests, IDENTITY_CONCURRENT))
    path = config.budget_file
    if path is None:
        queues = [Limiter(Budget(requests, window, concurrent), clock, max_wait) for requests, concurrent in sizes]
        return dict(zip(BudgetClass, (queues[0], queues[-1]), strict=True)), lambda: None
    longest = config.connect_timeout + config.read_timeout
    slowest = config.connect_timeout + max(config.read_timeout, SLOW_READ_TIMEOUT)
    leases = (longest + LATEST_START, slowest + LATEST_START)
    if sys.platform == "linux":
        # Imported here, because only a shared budget needs it.
        from imdsproxy.budget.joining import share  # noqa: PLC0415

        try:
            budgets, close = share(path, clock, window, sizes, leases)
        except BudgetFileError as error:
            raise SettingsError(f"IMDSPROXY_BUDGET_FILE={path} cannot be used: {error}") from None
        queues = [Limiter(budget, clock, max_wait, leases) for budget in budgets]
        return dict(zip(BudgetClass, (queues[0], queues[-1]), strict=True)), close
    raise SettingsError("IMDSPROXY_BUDGET_FILE: a budget is shared on Linux only")


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


def _accepted_hosts(config: Config, instance: str) -> AcceptedHosts:
    address = config.upstream
    authorities = {f"{IMDS.host}:{IMDS.port}"}
    if address.unix is None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        authorities.add(f"{host}:{address.port}")
    return AcceptedHosts(frozenset({"localhost", *config.allowed_hosts}), frozenset(authorities), instance)
