"""What answers: whether it is IMDS, and refuses what IMDS refuses."""

from __future__ import annotations

from imdsproxy.cli.check.answers import Exchange
from imdsproxy.cli.check.documents import member, words
from imdsproxy.cli.check.facts import Facts
from imdsproxy.cli.check.finding import Finding, failure, ok, skipped, warning
from imdsproxy.protocol.address import IMDS

RENEWED_EVERY = 10
"""Seconds in which the proxy renews an entry at most once because a client asks for it (cache/refresh_guard)."""
_NO_ANSWER = {
    "refused": ("imds-refused", "refuses connections", "check that this is an Azure VM, and the rules of its firewall"),
    "timeout": (
        "imds-timeout",
        "does not answer in time",
        "check the route above, and that no firewall drops the calls",
    ),
    "unreachable": ("imds-unreachable", "cannot be reached", "check the route above, and that this is an Azure VM"),
    "denied": (
        "imds-denied",
        "may not be reached from this process",
        "a firewall, a unit's IPAddressDeny= or a sandbox forbids it; allow 169.254.169.254",
    ),
    "broken": ("imds-broken", "sends no HTTP answer", "find out what listens at that address; it is not IMDS"),
}
_UPDATE = "IMDS is being updated, which takes up to 70 seconds; try again then"
_REPORT = (
    "try again in a minute; if it stays so, open a support request in the Azure portal (Instance Metadata Service)"
)


def judge_answer(facts: Facts) -> Finding:
    """Check that something answers, and that it is IMDS."""
    got = facts.versions
    if got.status is None:
        return _no_answer(facts, got)
    if got.own_error:
        return _proxys_answer(facts, got)
    code = f"{got.asked} answers {got.status}"
    if got.status == 410:
        return warning("imds-updating", code, _UPDATE, asked=got.asked)
    if got.status == 429:
        return warning("imds-throttled", code, "see the step throttling, and try again", asked=got.asked)
    if got.status >= 500:
        return failure("imds-failing", code, _REPORT, asked=got.asked)
    if got.status == 403:
        return failure(
            "imds-forbidden",
            code,
            "something in between denies this user: see the step agent, and the rules of a web proxy or firewall",
            asked=got.asked,
        )
    versions = _versions(got.body)
    server = got.header("server")
    if got.status != 200 or not versions or "imds" not in server.lower():
        return failure(
            "imds-other",
            f"{got.asked} answers {got.status} as {server or 'an unnamed server'}, without IMDS's list of versions",
            "that is not IMDS: check IMDSPROXY_UPSTREAM, that this is an Azure VM, and what listens at that address",
            asked=got.asked,
        )
    if got.from_cache and "stale" in got.header("cache-status"):
        return warning(
            "imds-stale",
            f"the proxy answers from its cache, {got.age} s old, because IMDS fails",
            _REPORT,
            asked=got.asked,
        )
    if got.age is not None and got.age > RENEWED_EVERY:
        return skipped(
            "answer-cached",
            f"a proxy answers from its cache, {got.age} s old, which shows nothing of IMDS",
            f"try again in {RENEWED_EVERY} s, because the proxy renews an answer at most once in that time",
        )
    ago = f", {got.age} s ago" if got.age else ""
    return ok(f"{server} answers, newest api-version {versions[-1]}{ago}", asked=got.asked)


def _no_answer(facts: Facts, got: Exchange) -> Finding:
    if got.proxied:
        obstacle = "" if facts.proxy is None else facts.proxy.failure or facts.proxy.obstacle
        return failure(
            "proxy-silent",
            f"the proxy does not answer in time ({got.words}){f'; it says: {obstacle}' if obstacle else ''}",
            "IMDS fails, or many requests wait for permits: read the proxy's log and /-/metrics",
            asked=got.asked,
        )
    if got.trouble == "refused" and facts.ruleset is not None and facts.ruleset.own is not None:
        return failure(
            "imds-redirected",
            f"{got.asked} refuses connections, because the redirect is loaded and no proxy runs",
            "start imdsproxy, or run this check as its user, or: imdsproxy redirect --load --remove",
            asked=got.asked,
        )
    code, what, advice = _NO_ANSWER[got.trouble]
    if facts.config.upstream != IMDS:
        advice = "check IMDSPROXY_UPSTREAM, which is not IMDS's own address, and what runs there"
    return failure(code, f"{got.asked} {what} ({got.words})", advice, asked=got.asked)


def _proxys_answer(facts: Facts, got: Exchange) -> Finding:
    """Judge an error that came through the proxy."""
    told = words(got.body, "error_description") or "an answer without a reason"
    if got.status == 403 and facts.proxy is not None and not facts.proxy.obstacle:
        return ok(f"IMDS has answered the proxy, which refuses this check /metadata/versions: {told}", asked=got.asked)
    if got.status == 508:
        advice = "load the redirect with the proxy's own user exempt: imdsproxy redirect --load --uid USER"
        return failure("proxy-loop", told, advice, asked=got.asked)
    return failure(
        "proxy-failing",
        f"the proxy answers {got.status}: {told}",
        "follow the advice in it, and read its log",
        asked=got.asked,
    )


def judge_guard(facts: Facts) -> Finding:
    """Check that requests are refused that IMDS refuses: without `Metadata`, and with `X-Forwarded-For`."""
    plain, forwarded = facts.without_metadata, facts.forwarded
    if plain is None and facts.config.require_metadata_header == "never" and facts.versions.proxied:
        return warning(
            "guard-off",
            "REQUIRE_METADATA_HEADER is never, so a forged request of any program gets this VM's tokens",
            "set IMDSPROXY_REQUIRE_METADATA_HEADER=credentials",
        )
    if plain is None or forwarded is None or plain.status is None or forwarded.status is None:
        return skipped("guard-unknown", "not checked, because nothing answers", "see the step answer")
    if plain.status < 300:
        return failure(
            "guard-metadata",
            f"{plain.asked} answers {plain.status} to a request without Metadata: true, which IMDS refuses",
            "that is not IMDS, or a proxy in between adds the header: remove it, since forged requests get tokens",
            asked=plain.asked,
        )
    if forwarded.status < 300:
        return failure(
            "guard-forwarded",
            f"{forwarded.asked} answers {forwarded.status} to a request with X-Forwarded-For, which IMDS refuses",
            "that is not IMDS, or a proxy in between removes the header: remove that proxy",
            asked=forwarded.asked,
        )
    if 429 in (plain.status, forwarded.status):
        return skipped("guard-throttled", "not checked, because the answer was 429", "see the step throttling")
    return ok(f"{plain.status} without Metadata, {forwarded.status} with X-Forwarded-For", asked=plain.asked)


def _versions(body: str) -> list[str]:
    found = member(body, "apiVersions")
    return list(map(str, found)) if isinstance(found, list) else []
