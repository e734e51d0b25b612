"""How well IMDS answers: its latency, its clock against this machine's, and its 429s."""

from __future__ import annotations

from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning
from imdsproxy.protocol.http_date import read_http_date

SLOW = 1.0
"""Seconds. Several clients wait no longer than that for IMDS (docs/clients.md)."""
_SKEWED, _WRONG = 30.0, 300.0  # seconds; Azure's services accept a difference of five minutes in a token's times


def judge_latency(facts: Facts) -> Finding:
    """Check how long IMDS takes: the mean of the running proxy, otherwise the one request of this check."""
    proxy = facts.proxy
    if proxy is not None and proxy.upstream_requests:
        seconds = proxy.upstream_seconds / proxy.upstream_requests
        found = f"{seconds * 1000:.0f} ms on average of the proxy's {proxy.upstream_requests} requests"
    elif facts.versions.status is not None and not facts.versions.proxied:
        seconds = facts.versions.seconds
        found = f"{seconds * 1000:.0f} ms for one request"
    else:
        return skipped("latency-unknown", "not measured, because IMDS has answered nothing", "see the step answer")
    if seconds > SLOW:
        advice = "some clients wait a second or less: keep what they need in the cache (IMDSPROXY_WARMUP)"
        return warning("latency-high", found, advice)
    return ok(found)


def judge_clock(facts: Facts) -> Finding:
    """Compare this machine's clock with the Date of the answer."""
    got = facts.versions
    date = read_http_date(got.header("date").encode("latin-1", "replace"))
    if date is None or got.from_cache:
        return skipped("clock-unknown", "not compared, because there is no new answer of IMDS with a Date")
    off = got.wall - date
    found = f"this machine's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} IMDS's"
    advice = "synchronise it: chronyc tracking, timedatectl; on Windows w32tm /resync"
    if abs(off) > _WRONG:
        return failure("clock-wrong", f"{found}, and services refuse tokens by their times", advice, asked=got.asked)
    if abs(off) > _SKEWED:
        return warning("clock-skewed", found, advice, asked=got.asked)
    return ok("within 30 s of IMDS's", asked=got.asked)


def judge_throttling(facts: Facts) -> Finding:
    """Check for 429 of IMDS. The proxy keeps the VM's limit, so they mean that others call IMDS as well."""
    callers = ", ".join(map(str, facts.direct_callers))
    now = f"; users with an open connection to IMDS now: {callers}" if callers else ""
    advice = (
        "others call IMDS directly: send them to the proxy (docs/clients.md, imdsproxy redirect), share a BUDGET_FILE "
        "between proxies, or leave the others room with a lower BUDGET_REQUESTS"
    )
    proxy = facts.proxy
    if proxy is not None and proxy.throttled:
        found = f"IMDS has answered the proxy {proxy.throttled} times with 429 in the last hour, despite its budget"
        return warning("throttled-by-others", found + now, advice)
    asked = (facts.versions, facts.without_metadata, facts.forwarded)
    if any(each is not None and each.status == 429 and not each.own_error for each in asked):
        return warning("throttled-by-others", f"IMDS answers 429 to one request a second{now}", advice)
    return ok(f"no 429 of IMDS{now}")
