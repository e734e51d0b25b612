"""`imdsproxy emulator events`: add, list, cancel and remove the scheduled events of a running emulator."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from imdsproxy.emulator.command_line import Parser
from imdsproxy.emulator.event_kinds import KINDS, EventError, kind_of
from imdsproxy.emulator.flag_values import url
from imdsproxy.emulator.timeline import read_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "imdsproxy emulator events"
DEFAULT_URL = "http://127.0.0.1:8255"
TIMEOUT = 10.0
MOST_BYTES = 4 * 1024 * 1024
_REFUSED = 1
_NOT_RUNNING = 3


class EventsCommandError(Exception):
    """The command cannot be carried out; `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0; 1 if the emulator refuses, 2 if the command line has no meaning, 3 if no emulator answers.
    """
    try:
        options = make_parser().parse_args(argv)
        return _run(options)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except EventsCommandError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return error.status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(prog=PROGRAM, description="Scheduled events of a running `imdsproxy emulator`.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    shared = Parser(add_help=False)
    shared.add_argument("--url", type=_url, default=DEFAULT_URL, help="address of the emulator (%(default)s)")

    add = commands.add_parser("add", parents=[shared], help="schedule an event, and print its id", allow_abbrev=False)
    add.add_argument("type", type=_kind, metavar="TYPE", help=f"one of {', '.join(KINDS)}")
    add.add_argument("--in", type=_duration, dest="notice", metavar="TIME", help="from its announcement to its start")
    add.add_argument(
        "--for", type=_duration, dest="duration", metavar="TIME", help="its duration; unknown if not given"
    )
    add.add_argument("--after", type=_duration, metavar="TIME", help="from now to its announcement (0)")
    add.add_argument("--cancel-after", type=_duration, metavar="TIME", help="cancel it so long after its announcement")
    add.add_argument("--resource", action="append", metavar="NAME", help="a machine; may be repeated (this machine)")
    add.add_argument("--description", metavar="TEXT", help="its description")
    add.add_argument("--source", choices=("Platform", "User"), help="who caused it (Platform)")
    add.add_argument("--id", metavar="ID", help="its id; made if not given")

    listed = commands.add_parser("list", parents=[shared], help="list the events", allow_abbrev=False)
    listed.add_argument("--json", action="store_true", help="print JSON")
    for name, text in (("remove", "drop an event"), ("cancel", "cancel an event that has not started")):
        one = commands.add_parser(name, parents=[shared], help=text, allow_abbrev=False)
        one.add_argument("id", metavar="ID", help="the id of the event")
    return parser


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "add":
            body = {
                "EventType": options.type,
                "NoticeInSeconds": options.notice,
                "DurationInSeconds": options.duration,
                "AfterSeconds": options.after,
                "CancelAfterSeconds": options.cancel_after,
                "Resources": options.resource,
                "Description": options.description,
                "EventSource": options.source,
                "EventId": options.id,
            }
            given = {key: value for key, value in body.items() if value is not None}
            sys.stdout.write(f"{_ask(options.url, 'POST', '/-/events', given)['EventId']}\n")
        case "list":
            listing = _ask(options.url, "GET", "/-/events")
            sys.stdout.write(json.dumps(listing, indent=2) + "\n" if options.json else table(listing))
        case "remove":
            _ask(options.url, "DELETE", f"/-/events/{quote(options.id, safe='')}")
        case _:
            _ask(options.url, "POST", f"/-/events/{quote(options.id, safe='')}/cancel")
    return 0


def table(listing: dict[str, Any]) -> str:
    """Return the events as lines for a terminal."""
    rows = [("ID", "TYPE", "PHASE", "NEXT", "RESOURCES")]
    rows.extend(
        (event["EventId"], event["EventType"], event["Phase"], _next(event), ", ".join(event["Resources"]))
        for event in listing["Events"]
    )
    if len(rows) == 1:
        return "no events\n"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{_printable(line)}\n" for line in lines)


def _next(event: dict[str, Any]) -> str:
    match event["Phase"]:
        case "Pending":
            return f"announced in {_seconds(event['AnnouncedIn'])}"
        case "Scheduled" if event["StartsIn"] is not None:
            return f"starts in {_seconds(event['StartsIn'])}"
        case "Scheduled":
            return f"cancelled in {_seconds(event['EndsIn'])}"
        case _:
            return f"ends in {_seconds(event['EndsIn'])}"


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in line)


def _ask(address: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON that the emulator answers; no web proxy is used.

    Raises:
        EventsCommandError: No emulator answers there, or it refuses.
    """
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT)
    advice = "start it with `imdsproxy emulator`, or name its address with --url"
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        status, document = response.status, json.loads(response.read(MOST_BYTES))
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise EventsCommandError(f"no emulator answers at {address}: {reason}; {advice}", _NOT_RUNNING) from None
    except (http.client.HTTPException, ValueError, RecursionError):
        raise EventsCommandError(f"what answers at {address} is no emulator; {advice}", _NOT_RUNNING) from None
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise EventsCommandError(f"what answers at {address} is no emulator; {advice}", _NOT_RUNNING)
    if status != http.client.OK:
        reason = _printable(str(document.get("error", "")))
        raise EventsCommandError(f"the emulator at {address} refuses with {status}: {reason}", _REFUSED)
    return document


def _url(text: str) -> str:
    address = url(text)
    if not address.startswith("http:"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an address such as {DEFAULT_URL}: the emulator speaks no TLS"
        )
    return address


def _kind(text: str) -> str:
    try:
        kind_of(text)
    except EventError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _duration(text: str) -> float:
    try:
        return read_duration(text)
    except EventError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
