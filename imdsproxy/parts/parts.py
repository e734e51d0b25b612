"""Build the parts: what asks IMDS, what stores its answers, and what observes both."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from imdsproxy.cache.shares import Shares, divide
from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock
from imdsproxy.config import Config
from imdsproxy.ops.history import History
from imdsproxy.ops.metrics import Metrics
from imdsproxy.ops.refusals import RefusalLog
from imdsproxy.ops.snapshot import take_snapshot
from imdsproxy.ops.state_metrics import State
from imdsproxy.ops.token_figures import tokens_in_use
from imdsproxy.ops.trouble_log import TroubleLog
from imdsproxy.ops.troubles import Troubles
from imdsproxy.parts.limiters import make_limiters
from imdsproxy.policy.policy import Policy
from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.address import IMDS
from imdsproxy.protocol.failures import FailureRules
from imdsproxy.proxy.expiry import Expiry
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.upstream.fetcher import Fetcher
from imdsproxy.upstream.retry import RetryRules
from imdsproxy.upstream.task import Sender

if TYPE_CHECKING:
    from imdsproxy.access.groups import Memberships
    from imdsproxy.access.guard import Guard
    from imdsproxy.ops.traces import Traces
    from imdsproxy.peers.pod_watch import PodWatch


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
    forget_kept: Callable[[], None] = lambda: None
    """Remove what another process has left for the next one, because entries were dropped."""
    memberships: Memberships | None = None
    """What is known of the groups of users; None without access rules."""
    reload_access: Callable[[], None] = lambda: None
    """Read the access file again."""
    observe_refusal: Callable[[str, str], None] = lambda _detail, _client: None
    """Called when bytes that are not a valid request were refused, with the reason and the client."""


def build(config: Config, upstream: Sender, clock: Clock, seed: bytes = b"") -> Parts:
    """Build the parts, without starting or connecting anything.

    Args:
        config: The settings.
        upstream: Sends single requests.
        clock: The clock.
        seed: Spreads this process's refreshes; without one, nothing is refreshed early.

    Raises:
        SettingsError: The access file, the file of a shared budget or the handover file cannot be used, or traces
            cannot be exported or pods watched as they are set.
    """
    metrics = Metrics(config.metrics_by_client)
    pods = None if config.pods_of_node is None else _pods(config.pods_of_node, clock)
    access, memberships, reload_access = _access_rules(config, metrics, pods, clock)
    limiters, close = make_limiters(config, clock)
    address = config.upstream
    instance = secrets.token_hex(8)
    metrics.access.guard = access
    history = History(metrics.by_outcome, metrics.clients)
    shares = divide(config.cache_max_bytes)
    store = Store(shares.entries, clock)
    troubles = TroubleLog(Troubles(shares.entries), clock, store.token_life)
    store.on_eviction = troubles.observe_eviction
    expiry = Expiry(store, clock)
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
        seed=seed,
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

    leave, forget_kept = _take_over(config, proxy, clock)

    def close_all() -> None:
        leave()
        expiry.close()
        troubles.close()
        close()

    hosts = _accepted_hosts(config, instance)
    return Parts(
        proxy,
        metrics,
        history,
        hosts,
        shares,
        close_all,
        traces,
        pods,
        forget_kept,
        memberships,
        reload_access,
        troubles.observe_refusal,
    )


def _pods(node: str, clock: Clock) -> PodWatch:
    from imdsproxy.parts.extras import watch_pods  # noqa: PLC0415  # only where pods are watched

    return watch_pods(node, clock)


def _traces(clock: Clock) -> Traces:
    from imdsproxy.parts.extras import export_traces  # noqa: PLC0415  # only where traces are exported

    return export_traces(clock)


def _access_rules(
    config: Config, metrics: Metrics, pods: PodWatch | None, clock: Clock
) -> tuple[Guard | None, Memberships | None, Callable[[], None]]:
    """Return the guard, what is known of the groups of users, and the function that reads the file again."""
    path = config.access_file
    if path is None:
        return None, None, lambda: None
    from imdsproxy.access.enforcement import enforce, reload  # noqa: PLC0415  # only where there are rules
    from imdsproxy.access.groups import Memberships  # noqa: PLC0415  # the same

    memberships = Memberships()
    guard = enforce(
        path,
        audit=config.access_mode == "audit",
        observers=(metrics.access.observe, RefusalLog(clock)),
        pod_at=None if pods is None else pods.find,
        memberships=memberships,
    )
    return guard, memberships, partial(reload, path, guard, memberships)


def _take_over(config: Config, proxy: Proxy, clock: Clock) -> tuple[Callable[[], None], Callable[[], None]]:
    """Take over what the last process left. Return the functions that leave entries, and forget those left."""
    if sys.platform == "linux" and config.handover_file is not None:  # the setting is refused elsewhere
        from imdsproxy.parts.handover import Handover  # noqa: PLC0415  # Linux only

        handover = Handover(config.handover_file, proxy, clock, config.upstream)
        handover.take()
        return handover.leave, handover.forget
    return lambda: None, lambda: None


def _accepted_hosts(config: Config, instance: str) -> AcceptedHosts:
    address = config.upstream
    authorities = {f"{IMDS.host}:{IMDS.port}"}
    if address.unix is None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        authorities.add(f"{host}:{address.port}")
    return AcceptedHosts(frozenset({"localhost", *config.allowed_hosts}), frozenset(authorities), instance)
