"""From settings to the parts of the house: the one place where a setting's name meets the part that obeys it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imdsproxy.admission import Admission
from imdsproxy.budget import Budget
from imdsproxy.clock import Clock
from imdsproxy.fetch import Fetcher, Sender
from imdsproxy.messages import BudgetClass
from imdsproxy.metrics import Metrics
from imdsproxy.normaliser import Doors
from imdsproxy.policy import Policy
from imdsproxy.proxy import Proxy
from imdsproxy.retry import RetryRules
from imdsproxy.settings_values import parse_upstream
from imdsproxy.store import Store
from imdsproxy.upstream import IMDS, Address

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


def upstream_address(settings: Settings) -> Address:
    """Give the address that requests go to."""
    parsed = parse_upstream(settings.upstream)
    if parsed.path is not None:
        return Address("localhost", unix=parsed.path)
    return Address(parsed.host or IMDS.host, parsed.port or 80)


def build(settings: Settings, upstream: Sender, clock: Clock) -> House:
    """Build the parts; nothing is started and nothing is connected."""
    general = Admission(Budget(settings.budget_requests, settings.budget_window), clock, settings.max_wait)
    identity = general
    if settings.identity_budget_requests is not None:
        budget = Budget(settings.identity_budget_requests, settings.budget_window, IDENTITY_CONCURRENT)
        identity = Admission(budget, clock, settings.max_wait)
    instance = secrets.token_hex(8)
    metrics = Metrics()
    fetcher = Fetcher(
        admissions={BudgetClass.GENERAL: general, BudgetClass.IDENTITY: identity},
        upstream=upstream,
        retry_rules=RetryRules(settings.retry_statuses, settings.retry_base, settings.retry_max),
        clock=clock,
        instance=instance,
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
    return House(proxy, metrics, _doors(settings, instance))


def _doors(settings: Settings, instance: str) -> Doors:
    address = upstream_address(settings)
    authorities = {f"{IMDS.host}:{IMDS.port}"}
    if address.unix is None:
        host = f"[{address.host}]" if ":" in address.host else address.host
        authorities.add(f"{host}:{address.port}")
    return Doors(frozenset({"localhost", *settings.allowed_hosts}), frozenset(authorities), instance)
