"""Write the status for a terminal, from the document of `/-/status.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imdsproxy.errors import printable

Row = Sequence[str]

_STATES = {
    "answering": "answers",
    "unknown": "has not been asked yet",
    "updating": "is being updated (410)",
    "throttling": "throttles this VM (429)",
    "failing": "fails",
}
_LONGEST_CELL = 60
_MOST_ENTRIES = 20


def text(status: Mapping[str, Any], redirect: str) -> str:
    """Return the figures as lines of text.

    Args:
        status: The document of `/-/status.json`.
        redirect: What is known of the redirect, in words.
    """
    proxy, cache = status["proxy"], status["cache"]
    blocks = [
        "\n".join(_pairs(_overview(status, redirect))),
        _table("BUDGET", ("", "free", "waiting", "wait", "refused"), map(_budget, status["budget"])),
        _table("IMDS IN THE LAST HOUR", ("", "requests"), ((word, f"{n:,}") for word, n in _items(status, "imds"))),
        _table("CLIENTS THAT SPENT MOST", ("", "sent", "requests", "refused"), map(_client, status["clients"])),
        _table(
            "TOKENS",
            ("audience", "identity", "expires in", "renewed in", "last failure"),
            map(_token, status["tokens"]),
        ),
        _table(
            "CACHE",
            ("path", "api-version", "hits", "age", "fresh for", "size"),
            map(_entry, cache["listed"][:_MOST_ENTRIES]),
        ),
        _table(
            "LISTENERS",
            ("", ""),
            ((each["address"], "/-/ only" if each["admin"] else "") for each in proxy["listeners"]),
        ),
        _table("SETTINGS", ("", "", ""), ((each["name"], each["value"], each["source"]) for each in proxy["settings"])),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def duration(seconds: float | None) -> str:
    """Return seconds as people say them, in at most two units."""
    if seconds is None:
        return "-"
    whole = int(abs(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: int) -> str:
    """Return bytes as people say them."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def _overview(status: Mapping[str, Any], redirect: str) -> Iterable[tuple[str, str]]:
    proxy, imds, requests, cache = status["proxy"], status["imds"], status["requests"], status["cache"]
    yield (
        "imdsproxy",
        f"{proxy['version']}, process {proxy['pid']}, up {duration(proxy['uptime'])}, for {proxy['upstream']}",
    )
    if not proxy["ready"]:
        yield "", f"not ready: {proxy['obstacle']}"
    success = "no success yet" if imds["last_success"] is None else f"last success {duration(imds['last_success'])} ago"
    yield "IMDS", f"{_STATES.get(imds['state'], imds['state'])}, for {duration(imds['since'])}; {success}"
    if imds["last_failure"]:
        yield "", f"last failure {_failure(imds['last_failure'])}"
    yield "calls saved", f"{requests['saved']:,}; {requests['sent_to_imds']:,} went to IMDS"
    outcomes = ", ".join(f"{name} {count:,}" for name, count in requests["by_outcome"].items())
    yield "requests", f"{requests['answered']:,}{f': {outcomes}' if outcomes else ''}"
    yield (
        "cache",
        ", ".join(
            (
                f"{cache['entries']:,} entries",
                f"{size(cache['bytes'])} of {size(cache['max_bytes'])}",
                f"{cache['evictions']:,} evicted",
            )
        ),
    )
    if proxy.get("chained"):  # a proxy that was started by an earlier version does not say
        yield "budget", "kept by the imdsproxy upstream; the permits below are not used"
    yield "redirect", redirect
    if status["events"]:
        pending = ", ".join(f"{kind} {count}" for kind, count in status["events"]["pending"].items() if count)
        yield "events", f"{pending or 'none'} pending, {duration(status['events']['ago'])} ago"


def _items(status: Mapping[str, Any], part: str) -> Iterable[tuple[str, int]]:
    return dict(status[part]["last_hour"]).items()


def _client(each: Mapping[str, Any]) -> Row:
    # A proxy of an earlier version has no figures but the first.
    return each["name"], *(f"{each[name]:,}" if name in each else "?" for name in ("sent", "requests", "refused"))


def _budget(each: Mapping[str, Any]) -> Row:
    return (
        each["name"],
        f"{each['free']} of {each['permits']}",
        f"{each['waiting']:,}",
        duration(each["estimated_wait"]),
        f"{each['refused']:,}",
    )


def _token(each: Mapping[str, Any]) -> Row:
    return (
        each["audience"],
        each["identity"],
        "not cached" if each["expires"] is None else duration(each["expires"]),
        duration(each["renewal"]),
        _failure(each["failure"]) if each["failure"] else "",
    )


def _entry(each: Mapping[str, Any]) -> Row:
    return (
        each["path"],
        each["api_version"] or "-",
        f"{each['hits']:,}",
        duration(each["age"]),
        duration(each["fresh"]) if each["fresh"] > 0 else "stale",
        size(each["bytes"]),
    )


def _failure(failed: Mapping[str, Any]) -> str:
    return f"{duration(failed['ago'])} ago: {failed['words']}"


def _pairs(rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    return (f"{name:<12}  {printable(value)}".rstrip() for name, value in rows)


def _table(title: str, heads: Row, rows: Iterable[Row]) -> str:
    """Return a table with its title, or nothing if it has no rows. The last column is not cut off."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    last = len(heads) - 1
    cells = [[cell if n == last else cell[:_LONGEST_CELL] for n, cell in enumerate(row)] for row in cells]
    lines = [[title if not heads[0] else heads[0], *heads[1:]], *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    written = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join(written if not heads[0] else [title, *written])
