"""Find the running proxy at the addresses of the settings, and read its pages under `/-/`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from imdsproxy.cli.check.documents import words
from imdsproxy.cli.check.facts import RunningProxy
from imdsproxy.cli.check.probes.asking import Asker, Pace
from imdsproxy.config import Config
from imdsproxy.protocol.address import Address

_PATIENCE = 5.0
"""Seconds for the proxy's own pages, which wait for nothing."""
_SAMPLE = re.compile(r"(?m)^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\d[0-9.e+-]*)$")
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound


def addresses(config: Config) -> Iterator[Address]:
    """Yield the addresses at which a client reaches a proxy with these settings."""
    if config.port:
        yield Address(_LOOPBACK.get(config.host, config.host), config.port)
    if config.uds is not None:
        yield Address("localhost", unix=config.uds)


def is_imdsproxy(address: Address, pace: Pace) -> bool:
    """Return whether an imdsproxy answers at an address."""
    return _read(_page(address, pace, "/-/metrics")) is not None


def running_proxy(address: Address, pace: Pace) -> RunningProxy | None:
    """Return what the proxy at an address reports, or None if there is none."""
    counts = _read(_page(address, pace, "/-/metrics"))
    if counts is None:
        return None
    throttled, requests, seconds = counts
    return RunningProxy(str(address), _obstacle(_page(address, pace, "/-/ready")), throttled, requests, seconds)


def _page(address: Address, pace: Pace, path: str) -> tuple[int | None, str]:
    got = Asker(address, str(address), proxied=True, patience=_PATIENCE, pace=pace, kept=1 << 20).ask_at_once(path)
    return got.status, got.body


def _read(page: tuple[int | None, str]) -> tuple[int, int, float] | None:
    """Return the 429s of IMDS, the requests to it and their time, or None if the page is not imdsproxy's."""
    status, text = page
    if status != 200 or "imdsproxy_" not in text:
        return None
    throttled, requests, seconds = 0.0, 0.0, 0.0
    for sample in _SAMPLE.finditer(text):
        value = float(sample["value"])
        if sample["name"] == "imdsproxy_upstream_requests_total" and 'status="429"' in (sample["labels"] or ""):
            throttled += value
        elif sample["name"] == "imdsproxy_upstream_seconds_count":
            requests += value
        elif sample["name"] == "imdsproxy_upstream_seconds_sum":
            seconds += value
    return int(throttled), int(requests), seconds


def _obstacle(page: tuple[int | None, str]) -> str:
    status, text = page
    if status == 200:
        return ""
    return words(text, "error_description") or f"/-/ready answers {status}"
