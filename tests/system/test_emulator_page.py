"""The emulator's page in a headless Chromium: what arrived, trouble and events with a click, and no use by others.

`TEST_SCREENSHOTS=FOLDER` writes pictures there.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from imdsproxy.testing import Imds, emulator
from tests.browser import Browser, missing, running_browser
from tests.kit import METADATA, get
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = [pytest.mark.system, pytest.mark.process]

VERSIONS = "/metadata/versions"
MARKUP = "<img/src=x/onerror=document.title='taken'>"
PICTURES = os.environ.get("TEST_SCREENSHOTS")
STRANGER = """<!doctype html><title>a stranger</title>
<link rel="preconnect" href="/"><link rel="preconnect" href="/" crossorigin><script>
const at = new URLSearchParams(location.search).get("at");
const said = [];
const attempt = async (name, path, options) => {
  try {
    const answer = await fetch(at + path, options);
    said.push([name, answer.type === "opaque" ? "sent" : answer.status]);
  } catch { said.push([name, "refused"]); }
};
Promise.all([
  attempt("simple", "/-/faults", { method: "POST", mode: "no-cors", body: '{"status": 500}' }),
  attempt("read", "/-/state", {}),
  attempt("token", "/-/reset", { method: "POST", headers: { "X-Emulator-Page": "guessed" } }),
  attempt("page", "/-/", {}),
]).then(() => { window.said = said.sort(); });
</script>"""


@dataclass
class Scene:
    imds: Imds
    browser: Browser

    def click(self, name: str, within: str = "main") -> None:
        """Click the button of this name; AssertionError if there is none."""
        script = (
            "const found = [...document.querySelectorAll(`${arguments[1]} button`)]"
            ".find((each) => (each.ariaLabel || each.textContent) === arguments[0]);"
            "if (found) found.click(); return Boolean(found)"
        )
        assert self.browser.run(script, name, within), name

    def status(self, target: str = VERSIONS) -> int:
        return get(self.imds.port, target).status


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("page")
    with emulator(environment=False, rate=0) as imds, running_browser(folder) as browser:
        browser.resize(1200, 1400)
        browser.open(f"{imds.url}/-/")
        browser.wait(lambda: "live" in browser.text("#live"))
        yield Scene(imds, browser)


def test_page_shows_a_program_that_keeps_the_rule_and_one_that_breaks_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = scene.browser
    assert browser.text("#verdict") == "… No program has asked yet"
    moment = time.monotonic()
    monkeypatch.setattr(scene.imds.emulator, "_monotonic", lambda: moment)
    for _ in range(5):
        scene.status()
    browser.wait(lambda: "Never more than Azure's IMDS answers: 5 requests" in browser.text("#verdict"))
    moment += 1
    for target in (*[INSTANCE] * 7, *[TOKEN] * 6):
        get(scene.imds.port, target, {**METADATA, "User-Agent": "eager/1"})
    browser.wait(lambda: "Azure's IMDS answers 5, and 429 to the rest" in browser.text("#verdict"))
    assert browser.text("#verdict").startswith("✕ 7 requests within one second at ")
    assert browser.run("return document.title").startswith("✕ 7 in a second")
    assert browser.run("return document.querySelectorAll('#general rect.over').length") >= 1
    assert browser.run("return document.querySelectorAll('#identity rect.over').length") == 0
    assert "2 of the requests shown came when 5 had come already" in browser.text("#general-words")
    assert browser.text("#identity-top") == "dashed: 20 a second; most in the last minute: 6"
    row = browser.run("return [...document.querySelectorAll('#latest tbody tr')][6].innerText").split("\t")
    assert row[1:] == ["200", "7 of 5", f"GET {INSTANCE}", "eager/1"]


def test_trouble_is_added_and_ended_with_a_click(scene: Scene) -> None:
    browser = scene.browser
    scene.click("410 for 20 s")
    browser.wait(lambda: "status 410 at /: " in browser.text("#faults"))
    assert scene.status() == 410
    scene.click("End this trouble")
    browser.wait(lambda: not browser.text("#faults"))
    assert scene.status() == 200
    browser.run("document.querySelector('#trouble [name=path]').value = '/metadata/versions'")
    scene.click("Add")
    browser.wait(lambda: "status 503 at /metadata/versions: " in browser.text("#faults"))
    assert (scene.status(), scene.status(INSTANCE)) == (503, 200)
    scene.click("End all trouble")
    browser.wait(lambda: not browser.text("#faults"))


def test_mistake_is_told(scene: Scene) -> None:
    browser = scene.browser
    browser.run("document.querySelector('#trouble [name=value]').value = 'many'")
    scene.click("Add")
    browser.wait(lambda: browser.text("#error") == "✕ status must be a number, not 'many'")
    browser.run("document.querySelector('#trouble [name=value]').value = '503'")
    scene.click("End all trouble")
    browser.wait(lambda: browser.run("return document.getElementById('error').hidden"))


def test_event_is_added_approved_and_removed_with_a_click(scene: Scene) -> None:
    browser = scene.browser
    browser.run("document.getElementById('notice').value = '600'")
    scene.click("Preempt")
    browser.wait(lambda: "Preempt of " in browser.text("#events"))
    assert "Scheduled, starts in 10 min" in browser.text("#events")
    (event,) = json.loads(get(scene.imds.port, EVENTS).body)["Events"]
    assert (event["EventType"], event["EventStatus"]) == ("Preempt", "Scheduled")
    scene.click("Approve Preempt")
    browser.wait(lambda: ": Started" in browser.text("#events"))
    assert scene.imds.events[0]["EventStatus"] == "Started"
    scene.click("Remove Preempt")
    browser.wait(lambda: not browser.text("#events"))
    assert scene.imds.events == []


def test_markup_of_clients_is_text(scene: Scene) -> None:
    browser = scene.browser
    get(scene.imds.port, f"/metadata/{MARKUP}?a={MARKUP}", {**METADATA, "User-Agent": MARKUP})
    browser.wait(lambda: browser.text("#latest").count(MARKUP) == 3)
    assert browser.run("return document.images.length + document.querySelectorAll('main script').length") == 0
    assert "taken" not in browser.run("return document.title")


def test_page_asks_its_emulator_only_and_breaks_no_policy(scene: Scene) -> None:
    asked = scene.browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked
    assert all(name.startswith(f"{scene.imds.url}/-/") for name in asked)
    assert [message for message in scene.browser.logs() if "status of 400" not in message] == []


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_page_fits_its_window(scene: Scene, width: int, dark: bool) -> None:
    browser = scene.browser
    browser.resize(width, 1400, dark=dark)
    browser.wait(lambda: browser.run("return innerWidth") == width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    if PICTURES:
        browser.screenshot(Path(PICTURES) / f"emulator{'-phone' if dark else ''}.png")


def test_page_of_another_site_can_neither_read_nor_change(scene: Scene) -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(STRANGER.encode())

        def log_message(self, *args: object) -> None:
            pass

    arrived = scene.imds.asked()
    # A browser opens connections that it may never use, as the page asks it to. A server of one thread would read from
    # such a connection for as long as the browser keeps it, and its shutdown would wait for that.
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            scene.browser.open(f"http://localhost:{server.server_port}/?at={scene.imds.url}")
            scene.browser.wait(lambda: scene.browser.run("return window.said || null"))
            said = scene.browser.run("return window.said")
        finally:
            server.shutdown()
    # The simple request is sent, unreadable for its page, and refused; the others never get an answer to read.
    assert said == [["page", "refused"], ["read", "refused"], ["simple", "sent"], ["token", "refused"]]
    assert len(scene.imds.emulator.faults) == 0
    assert scene.imds.asked() == arrived


def test_page_says_that_the_emulator_is_gone(scene: Scene) -> None:
    browser = scene.browser
    with emulator(environment=False) as imds:
        browser.open(f"{imds.url}/-/")
        browser.wait(lambda: "live" in browser.text("#live"))
    browser.wait(lambda: "The emulator is gone" in browser.text("#live"))
