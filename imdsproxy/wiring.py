"""From settings to the parts of the house: the one place where a setting's name meets the part that obeys it."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imdsproxy.admission import LATEST_START, Admission
from imdsproxy.budget import Budget
from imdsproxy.clock import Clock
from imdsproxy.errand import Sender
from imdsproxy.fetch import Fetcher
from imdsproxy.messages import BudgetClass
from imdsproxy.metrics import Metrics
from imdsproxy.normaliser import Doors
from imdsproxy.policy import Policy
from imdsproxy.proxy import Proxy
from imdsproxy.retry import RetryRules
from imdsproxy.settings_places import parse_upstream
from imdsproxy.settings_values import SettingsError
from imdsproxy.store import Store
from imdsproxy.upstream import IMDS, SLOW_READ_TIMEOUT, Address

if TYPE_CHECKING:
    from imdsproxy.settings import Settings

IDENTITY_CONCURRENT = 5
"""Identity requests that IMDS takes at once (Microsoft's IMDS page, 2025)."""


@dataclass(frozen=True, slots=True)
class House:
    """The parts that one application is made of."""

    proxy: Proxy
    metrics: Metrics
    doors: Doors
    close: Callable[[], None] = lambda: None
    """Give back what is shared with others."""


def upstream_address(settings: Settings) -> Address:
    """Give the address that requests go to."""
    parsed = parse_upstream(settings.upstream)
    if parsed.path is not None:
        return Address("localhost", unix=parsed.path)
    return Address(parsed.host or IMDS.host, parsed.port or 80)


def build(settings: Settings, upstream: Sender, clock: Clock) -> House:
    """Build the parts; nothing is started and nothing is connected. SettingsError where a shared budget is refused."""
    admissions, close = _admissions(settings, clock)
    address = upstream_address(settings)
    instance = secrets.token_hex(8)
    metrics = Metrics()
    fetcher = Fetcher(
        admissions=admissions,
        upstream=upstream,
        retry_rules=RetryRules(settings.retry_statuses, settings.retry_base, settings.retry_max),
        clock=clock,
        instance=instance,
        # IMDS's own address may lead to a node's proxy, but only for as long as a redirect stands.
        proxied=None if address == IMDS else address.unix is not None,
        patience=settings.read_timeout,
        notify=metrics.asked,
    )
    policy = Policy(
        ttl=dict(settings.ttl),
        stale_if_error=dict(settings.stale_if_error),
        negative_ttl=settings.negative_ttl,
        require_metadata=settings.require_metadata_header,
        allow=settings.allow,
        deny=settings.deny,
    )
    store = Store(settings.cache_max_bytes, clock)
    proxy = Proxy(policy=policy, store=store, fetcher=fetcher, clock=clock, derives=settings.derive)
    metrics.watch(proxy, clock)
    return House(proxy, metrics, _doors(settings, instance), close)


def _admissions(settings: Settings, clock: Clock) -> tuple[dict[BudgetClass, Admission], Callable[[], None]]:
    """Give the queue of each class, and what is to be called when nobody waits in them any more."""
    window, max_wait = settings.budget_window, settings.max_wait
    sizes: list[tuple[int, int | None]] = [(settings.budget_requests, None)]
    if settings.identity_budget_requests is not None:
        sizes.append((settings.identity_budget_requests, IDENTITY_CONCURRENT))
    if settings.budget_file is None:
        queues = [Admission(Budget(requests, window, concurrent), clock, max_wait) for requests, concurrent in sizes]
        return dict(zip(BudgetClass, (queues[0], queues[-1]), strict=True)), lambda: None
    longest = settings.connect_timeout + settings.read_timeout
    slowest = settings.connect_timeout + max(settings.read_timeout, SLOW_READ_TIMEOUT)
    leases = (longest + LATEST_START, slowest + LATEST_START)
    if sys.platform == "linux":
        # Late, since only those who share need it.
        from imdsproxy.budget_file import BudgetFileError  # noqa: PLC0415
        from imdsproxy.shared_budget import share  # noqa: PLC0415

        try:
            budgets, close = share(settings.budget_file, clock, window, sizes, leases)
        except BudgetFileError as error:
            raise SettingsError(f"IMDSPROXY_BUDGET_FILE={settings.budget_file} cannot be used: {error}") from None
        queues = [Admission(budget, clock, max_wait, leases) for budget in budgets]
        return dict(zip(BudgetClass, (queues[0], queues[-1]), strict=True)), close
    raise SettingsError("IMDSPROXY_BUDGET_FILE: a budget is shared on Linux only")


def _doors(settings: Settings, instance: str) -> Doors:
    address = upstream_address(settings)
    authorities = {f"{IMDS.host}:{IMDS.port}"}
    if address.unix is None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        authorities.add(f"{host}:{address.port}")
    return Doors(frozenset({"localhost", *settings.allowed_hosts}), frozenset(authorities), instance)
