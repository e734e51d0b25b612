from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from imdsproxy.cli.running.status_text import duration, size, text
from imdsproxy.config import SettingInForce
from imdsproxy.errors import printable
from imdsproxy.ops.readiness import Readiness
from imdsproxy.ops.status import Listening
from imdsproxy.ops.status_reader import About, StatusReader
from tests.scripted import Imds, Sent, Stage, ok, status, token
from tests.targets import EVENTS, TOKEN
from tests.virtual import run


def answer(sent: Sent) -> Any:
    if "resource=%1B" in sent.target or "versions" in sent.target:
        return status(500)
    if "scheduledevents" in sent.target:
        return ok('{"DocumentIncarnation":1,"Events":[{"EventType":"Freeze"}]}')
    return token(86_400) if "oauth2" in sent.target else ok()


def document(*targets: str) -> dict[str, Any]:
    """Return the status of a proxy that was asked for these targets."""

    async def scene() -> dict[str, Any]:
        stage = Stage(Imds(answer), retry_max=1)
        readiness = Readiness(stage.proxy, ())
        about = About("http://127.0.0.1:9", 1.0, (SettingInForce("IMDSPROXY_PORT", "1", "flag --port"),))
        reader = StatusReader(stage.proxy, readiness, stage.parts.history, stage.clock, about)
        reader.listeners = (Listening("http://127.0.0.1:1", admin=False), Listening("http://127.0.0.1:2", admin=True))
        stage.parts.history.start(stage.now)
        for target in targets:
            stage.parts.metrics.observe(await stage.get(target), 0.0, None, b"")
        await asyncio.sleep(65)
        return dict(json.loads(reader.json()))

    return run(scene())


def test_new_proxy_has_an_overview_and_its_budget() -> None:
    shown = text(document(), "not loaded")
    assert shown.startswith("imdsproxy     0.")
    assert "              not ready: IMDS has not answered yet" in shown
    assert "IMDS          has not been asked yet, for 1 min 5 s; no success yet\n" in shown
    assert "calls saved   0; 0 went to IMDS\n" in shown
    assert "redirect      not loaded\n" in shown
    assert ["general", "5", "of", "5", "0", "0", "s", "0"] in [line.split() for line in shown.splitlines()]
    assert "TOKENS" not in shown
    assert "IMDSPROXY_PORT  1  flag --port" in shown
    assert "http://127.0.0.1:2  /-/ only" in shown


def test_ready_proxy_says_nothing_of_readiness() -> None:
    made = document()
    made["proxy"]["ready"] = True
    assert "ready" not in text(made, "")


def test_chained_proxy_says_who_keeps_the_budget() -> None:
    made = document()
    assert "budget  " not in text(made, "")
    made["proxy"]["chained"] = True
    assert "\nbudget        kept by the imdsproxy upstream; " in text(made, "")


def test_busy_proxy_has_its_tables() -> None:
    instance = "/metadata/instance?api-version=2021-02-01"
    shown = text(document(instance, instance, TOKEN, EVENTS, "/metadata/versions"), "unknown")
    assert "IMDS          fails, for 1 min " in shown
    assert "ago: status 500" in shown
    assert "requests      5: miss 3, hit 1, error 1\n" in shown
    assert "events        Freeze 1 pending, 1 min " in shown
    lines = [line.split() for line in shown.splitlines()]
    assert next(line[:8] for line in lines if line[:1] == ["/metadata/instance"]) == [
        "/metadata/instance",
        "2021-02-01",
        "1",
        "1",
        "min",
        "6",
        "s",
        "stale",
    ]
    assert ["https://vault.azure.net", "default", "23", "h", "58", "min"] in [line[:6] for line in lines]


def test_token_that_fails_is_named_and_cannot_move_the_cursor() -> None:
    made = document("/metadata/identity/oauth2/token?api-version=2018-02-01&resource=forbidden")
    made["tokens"][0]["audience"] = "\x1b[2Jx"
    made["tokens"][0]["failure"] = {"ago": 1.0, "status": "403", "words": "IMDS answered\nwith status 403"}
    shown = text(made, "")
    assert "\\x1b[2Jx" in shown
    assert "1 s ago: IMDS answered\\nwith status 403\n" in shown
    assert all(line.isprintable() for line in shown.splitlines())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "-"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 0 s"),
        (3600, "1 h 0 min"),
        (90_000, "1 d 1 h"),
        (-5.0, "5 s"),
    ],
)
def test_duration_has_two_units_at_most(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB")])
def test_size_has_one_unit(count: int, words: str) -> None:
    assert size(count) == words


def test_printable_escapes_what_a_terminal_obeys() -> None:
    assert printable("é\t\x9b\x1b") == "é\\t\\x9b\\x1b"
