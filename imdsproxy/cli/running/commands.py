"""`imdsproxy status`, `imdsproxy purge` and `imdsproxy events`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from time import sleep
from typing import Any
from urllib.parse import quote

from imdsproxy.cli.check.probes.rules import Rules, look_at_rules
from imdsproxy.cli.running.client import Answer, admin_places, ask, metadata_places, page_places
from imdsproxy.cli.running.event_lines import EventLines
from imdsproxy.cli.running.status_text import text
from imdsproxy.cli.standard_streams import complain, show
from imdsproxy.config import Config
from imdsproxy.errors import NotRunningError, SettingsError, printable, without_tokens

SCHEMA = 1
"""The version of the document that this version reads."""
METADATA = {"Metadata": "true"}
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_STATUS_EVERY = 2.0
# The shortest notice of an event is 30 seconds. Microsoft recommends a request a second, a fifth of the whole budget
# where no other client asks; this takes a twenty-fifth.
_EVENTS_EVERY = 5.0
# The first request of a VM may take two minutes (Microsoft's scheduled-events page).
_EVENTS_TIMEOUT = 180.0
_UNREAD = 1
_CLEAR = "\x1b[H\x1b[2J"


class RefusedError(SettingsError):
    """The proxy answers, but not with what was asked for."""


def status(config: Config, options: Mapping[str, str]) -> int:
    """Print the status of the running proxy.

    Args:
        config: The settings that name the proxy.
        options: `json` and `watch`, where they were given.

    Raises:
        NotRunningError: No proxy answers there.
    """
    return _repeat(partial(_show_status, config, options), _STATUS_EVERY, once="watch" not in options)


def purge(config: Config, path: str | None) -> int:
    """Drop cached entries of the running proxy, all of them or those of `path` and below.

    Raises:
        SettingsError: The settings name neither an admin listener nor a Unix socket.
        RefusedError: The path cannot be used.
        NotRunningError: No proxy answers there.
    """
    places = admin_places(config)
    if not places:
        raise SettingsError(
            "entries are dropped only over the admin listener or the Unix socket; run the proxy with "
            "IMDSPROXY_ADMIN_PORT or IMDSPROXY_UDS, and name it here as well (--admin-port, --uds), or send it SIGHUP"
        )
    target = "/-/purge" if path is None else f"/-/purge?path={quote(path, safe='/')}"
    answer = ask(places, "POST", target, METADATA)
    document = _json(answer)
    if answer.status != 200:
        raise RefusedError(_refusal(answer, document))
    what = "entry" if document["dropped"] == 1 else "entries"
    return 0 if show(f"{document['dropped']} {what} dropped\n") else _UNREAD


def events(config: Config, options: Mapping[str, str]) -> int:
    """Print scheduled events as they change, one JSON object a line.

    Args:
        config: The settings that name the proxy.
        options: `once` to print only the pending events.

    Raises:
        NotRunningError: No proxy answers there.
        RefusedError: The pending events are asked for `once`, and cannot be had.
    """
    return _repeat(partial(_show_events, config, EventLines()), _EVENTS_EVERY, once="once" in options)


def _repeat(step: Callable[[], bool], seconds: float, *, once: bool) -> int:
    """Perform a step, and unless `once` again and again, and return the exit status.

    A proxy that has answered may be restarted, and IMDS may fail for a while. Watching goes on, and writes the reason
    once.

    Args:
        step: Asks and prints; returns whether the output still has a reader.
        seconds: The pause between two steps.
        once: Whether one step is enough.

    Raises:
        NotRunningError: No proxy has answered yet.
        RefusedError: There is no answer to print, and it is asked for `once`.
    """
    answered, reason = False, ""
    while True:
        try:
            if not step():
                return _UNREAD
            answered, reason = True, ""
            if once:
                return 0
        except (NotRunningError, RefusedError) as error:
            if once or not (answered or isinstance(error, RefusedError)):
                raise
            if str(error) != reason:
                complain(f"{error.for_terminal()}; asking again")
            reason = str(error)
        sleep(seconds)


def _show_status(config: Config, options: Mapping[str, str]) -> bool:
    document = _document(ask(page_places(config), "GET", "/-/status.json"))
    redirect = _redirect_in_words(look_at_rules())
    if "json" in options:
        return show(json.dumps({**document, "redirect": redirect}, separators=(",", ":")) + "\n")
    clear = _CLEAR if "watch" in options and sys.stdout.isatty() else ""
    return show(clear + text(document, redirect))


def _show_events(config: Config, lines: EventLines) -> bool:
    answer = ask(metadata_places(config), "GET", EVENTS, METADATA, _EVENTS_TIMEOUT)
    new = lines.read(answer.body) if answer.status == 200 else None
    if new is None:
        raise RefusedError(_refusal(answer, _json(answer, required=False)))
    return not new or show("".join(f"{line}\n" for line in new))


def _document(answer: Answer) -> dict[str, Any]:
    """Return the status, or raise NotRunningError if something else answers."""
    document = _json(answer, required=False)
    if answer.status == 404 and "error" in document:
        raise NotRunningError(f"the imdsproxy at {answer.place.name} has no status; it is of an earlier version")
    if answer.status != 200 or document.get("schema") != SCHEMA:
        raise NotRunningError(
            f"what answers at {answer.place.name} is not imdsproxy of this version (status {answer.status})"
        )
    return document


def _json(answer: Answer, *, required: bool = True) -> dict[str, Any]:
    try:
        document = json.loads(answer.body)
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    if required:
        raise NotRunningError(f"what answers at {answer.place.name} is not imdsproxy (status {answer.status})")
    return {}


def _refusal(answer: Answer, document: Mapping[str, Any]) -> str:
    words = str(document.get("error_description") or document.get("error") or "no scheduled-events document")
    return printable(f"{answer.place.name} answered with status {answer.status}: {without_tokens(words)}"[:500])


def _redirect_in_words(rules: Rules) -> str:
    if rules.ruleset is None:
        return f"unknown: {rules.words}"
    own = rules.ruleset.own
    if own is None:
        return "not loaded"
    pods = ", pods too" if own.node else ""
    exempt = "and root are exempt" if own.root_exempt else "is exempt"
    return f"loaded: to {own.host}:{own.port}, user {own.exempt or 'none'} {exempt}{pods}"
