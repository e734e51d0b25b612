"""`imdsproxy emulator events` against an emulator on a socket."""

from __future__ import annotations

import http.client
import http.server
import json
import re
import threading
from collections.abc import Iterator

import pytest

from imdsproxy.cli.main import main
from imdsproxy.emulator import EmulatorServer, events_command
from tests.targets import EVENTS

SCREEN = re.compile(r"ID +TYPE +PHASE +NEXT +RESOURCES\n")


def run(server: EmulatorServer | str, *words: str) -> int:
    url = server if isinstance(server, str) else server.url
    return main(["emulator", "events", *words, "--url", url])


@pytest.fixture
def imds_events(imds: EmulatorServer) -> Iterator[EmulatorServer]:
    imds.emulator.events.clear()
    yield imds
    imds.emulator.events.clear()


def test_event_is_added_listed_cancelled_and_removed(
    imds_events: EmulatorServer, capsys: pytest.CaptureFixture[str]
) -> None:
    imds = imds_events
    assert run(imds, "list") == 0
    assert capsys.readouterr().out == "no events\n"
    assert run(imds, "add", "reboot", "--in", "15m", "--for", "9s") == 0
    event_id = capsys.readouterr().out.strip()
    (event,) = imds.emulator.events.listing()["Events"]
    assert (event["EventId"], event["EventType"], event["DurationInSeconds"]) == (event_id, "Reboot", 9)
    assert 880 < event["StartsIn"] <= 900
    assert run(imds, "add", "hardware-failure", "--id", "B/B", "--resource", "a", "--resource", "b") == 0
    assert run(imds, "add", "Preempt", "--id", "C", "--after", "1h", "--cancel-after", "10s", "--source", "User") == 0
    capsys.readouterr()
    assert run(imds, "list") == 0
    shown = capsys.readouterr().out
    assert SCREEN.match(shown)
    assert re.search(r"^B/B +Reboot +Started +ends in [45]m\d\ds +a, b$", shown, re.MULTILINE)
    assert re.search(r"^C +Preempt +Pending +announced in (59|60)m\d\ds +examplevmname$", shown, re.MULTILINE)
    assert run(imds, "cancel", "B/B") == 1
    assert "refuses with 409: event 'B/B' has started" in capsys.readouterr().err
    assert run(imds, "remove", "B/B") == 0
    assert run(imds, "cancel", event_id) == 0
    assert capsys.readouterr().out == ""
    assert run(imds, "list", "--json") == 0
    assert [each["EventId"] for each in json.loads(capsys.readouterr().out)["Events"]] == ["C"]
    assert run(imds, "remove", "nothing") == 1
    assert "refuses with 404: no event 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["add"], "the following arguments are required: TYPE"),
        (["add", "nap"], "no event type 'nap'; known are freeze"),
        (["add", "reboot", "--in", "soon"], "'soon' is not a duration"),
        (["add", "reboot", "--url", "ftp://x"], "'ftp://x' is not an address such as http://127.0.0.1:8255"),
        (["list", "--url", "http://127.0.0.1:99999"], "is not an address"),
        (["list", "--url", "http://127.0.0.1:1/metadata"], "is not an address"),
        (["remove"], "the following arguments are required: ID"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_mistyped_command_is_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emulator", "events", *words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("imdsproxy emulator events")
    assert error.count("\n") == 1


def test_missing_emulator_is_said_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:1", "list") == 3
    assert capsys.readouterr().err == (
        "imdsproxy emulator events: no emulator answers at http://127.0.0.1:1: Connection refused; "
        "start it with `imdsproxy emulator`, or name its address with --url\n"
    )


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 100_000])
def test_other_server_is_no_emulator(body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        server.timeout = Other.timeout = 30
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert run(f"http://127.0.0.1:{server.server_port}", "list") == 3
        thread.join(60)
        assert not thread.is_alive(), "the server has not finished its one request"
    assert "is no emulator; start it with" in capsys.readouterr().err


def test_phases_have_their_next_moment() -> None:
    base = {"EventId": "A\x1b", "EventType": "T", "Resources": [], "AnnouncedIn": 61.0, "StartsIn": 5.0, "EndsIn": 9.0}
    events = [{**base, "Phase": phase} for phase in ("Pending", "Scheduled", "Started")]
    events.append({**base, "Phase": "Scheduled", "StartsIn": None})
    lines = events_command.table({"Events": events}).splitlines()[1:]
    assert [re.split(" {2,}", line)[3] for line in lines] == [
        "announced in 1m01s",
        "starts in 5s",
        "ends in 9s",
        "cancelled in 9s",
    ]
    assert all(line.startswith("A?") for line in lines), "control characters do not reach the terminal"


def test_events_of_the_command_line_reach_a_client(imds_events: EmulatorServer) -> None:
    assert run(imds_events, "add", "freeze", "--for", "5s") == 0
    connection = http.client.HTTPConnection("127.0.0.1", imds_events.port, timeout=5)
    connection.request("GET", EVENTS, headers={"Metadata": "true"})
    (event,) = json.loads(connection.getresponse().read())["Events"]
    connection.close()
    assert (event["EventType"], event["EventStatus"], event["DurationInSeconds"]) == ("Freeze", "Scheduled", 5)
