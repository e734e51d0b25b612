"""Find the running proxy at the addresses of the settings, and read its pages under `/-/`."""

from __future__ import annotations

import re
from dataclasses import replace

from imdsproxy.cli.check.answers import RunningProxy
from imdsproxy.cli.check.documents import member
from imdsproxy.cli.check.probes.asking import Asker, Pace
from imdsproxy.cli.running.client import metadata_places
from imdsproxy.config import Config
from imdsproxy.protocol.address import Address

_PATIENCE = 5.0
"""Seconds for the proxy's own pages, which wait for nothing."""
_SAMPLE = re.compile(r"(?m)^imdsproxy_upstream_seconds_(?P<figure>count|sum)\{[^}]*\} (?P<value>\d[0-9.e+-]*)$")
"""A figure of one endpoint."""


def addresses(config: Config) -> tuple[Address, ...]:
    """Return the addresses at which a client reaches a proxy with these settings."""
    return tuple(Address(place.host, place.port, place.unix) for place in metadata_places(config))


def is_imdsproxy(address: Address, pace: Pace) -> bool:
    """Return whether an imdsproxy answers at an address."""
    return _read(_page(address, pace, "/-/metrics")) is not None


def running_proxy(address: Address, pace: Pace) -> RunningProxy | None:
    """Return what the proxy at an address reports, or None if there is none."""
    times = _read(_page(address, pace, "/-/metrics"))
    if times is None:
        return None
    _, text = _page(address, pace, "/-/status.json")
    requests, seconds = times
    return _with_status(RunningProxy(str(address), upstream_requests=requests, upstream_seconds=seconds), text)


def _page(address: Address, pace: Pace, path: str) -> tuple[int | None, str]:
    got = Asker(address, str(address), proxied=True, patience=_PATIENCE, pace=pace, kept=1 << 20).ask_at_once(path)
    return got.status, got.body


def _read(page: tuple[int | None, str]) -> tuple[int, float] | None:
    """Return the number of requests to IMDS and their time, or None if the page is not imdsproxy's."""
    status, text = page
    if status != 200 or "imdsproxy_" not in text:
        return None
    total = {"count": 0.0, "sum": 0.0}
    for sample in _SAMPLE.finditer(text):
        total[sample["figure"]] += float(sample["value"])
    return int(total["count"]), total["sum"]


def _with_status(proxy: RunningProxy, text: str) -> RunningProxy:
    """Add what /-/status.json says (docs/status.md); without it, as with another version, nothing is added."""
    about, imds = member(text, "proxy"), member(text, "imds")
    if not isinstance(about, dict) or not isinstance(imds, dict):
        return proxy
    failure = imds.get("last_failure") or {}
    failing = imds.get("state") not in {"answering", "unknown"} and failure
    return replace(
        proxy,
        obstacle=str(about.get("obstacle") or ""),
        failure=f"{failure.get('status')}: {failure.get('words')}" if failing else "",
        throttled=int((imds.get("last_hour") or {}).get("429", 0)),
        settings=tuple((str(each["name"]), str(each["value"])) for each in about.get("settings") or ()),
    )
