"""The status page in a headless Chromium: under load, while IMDS is down, and after the proxy is gone.

`TEST_SCREENSHOTS=docs` writes the pictures of `docs/status.md` there.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from imdsproxy.emulator.faults import Fault
from tests.browser import Browser, missing, running_browser
from tests.kit import ProxyProcess, free_port, get, running_proxy
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = [pytest.mark.system, pytest.mark.process]

LEAVES = ("vmId", "location", "zone", "name", "subscriptionId", "resourceId", "sku", "vmSize")
FIRST = "e0000000-0000-4000-8000-00000000c111"
UNKNOWN = "e0000000-0000-4000-8000-0000000000ff"
MARKUP = "<img src=x onerror=document.title='taken'><script>document.title='taken'</script>"
MARKUP_IN_URL = quote(MARKUP, safe="")
PICTURES = os.environ.get("TEST_SCREENSHOTS")
PAUSE = 0.05 if PICTURES else 0.005
LOAD_SECONDS = 300.0 if PICTURES else 6.0


@dataclass
class Scene:
    """One IMDS, one proxy in front of it, one browser with the proxy's page."""

    imds: EmulatorServer
    proxy: ProxyProcess
    browser: Browser
    admin: int

    def status(self) -> dict[str, Any]:
        return dict(json.loads(get(self.proxy.port, "/-/status.json").body))

    def picture(self, name: str) -> None:
        if PICTURES:
            self.browser.screenshot(Path(PICTURES) / f"{name}.png")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("page")
    emulator = Emulator(rate=0, identity_rate=0, identity_concurrency=0)
    emulator.events.add("Freeze")
    admin = free_port()
    with (
        run_in_thread(emulator) as imds,
        running_proxy(
            folder, upstream=imds.url, admin_port=admin, ttl="/metadata/instance/compute=2", max_wait=2, retry_max=5
        ) as proxy,
        running_browser(folder) as browser,
    ):
        load(proxy.port)
        browser.resize(1200, 1500)
        browser.open(f"{proxy.url}/-/status")
        browser.wait(lambda: "live" in browser.text("#live"))
        yield Scene(imds, proxy, browser, admin)


def load(port: int) -> None:
    """Ask as a VM's processes do, for a few seconds: leaves, the whole, tokens, events, and an identity of no one."""
    targets = [
        INSTANCE,
        *(f"/metadata/instance/compute/{leaf}?api-version=2021-02-01&format=text" for leaf in LEAVES),
        TOKEN,
        f"{TOKEN}&client_id={FIRST}",
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/",
        f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://graph.microsoft.com&client_id={UNKNOWN}",
        EVENTS,
    ]
    end = time.monotonic() + LOAD_SECONDS

    def ask() -> None:
        while time.monotonic() < end:
            for target in targets:
                get(port, target)
                time.sleep(PAUSE)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()


def tile(browser: Browser, name: str) -> str:
    """Return the figure under a name."""
    return str(
        browser.run(
            "return [...document.querySelectorAll('#tiles > div')]"
            ".find((tile) => tile.querySelector('dt').textContent === arguments[0]).querySelector('.figure').innerText",
            name,
        )
    )


def rows(browser: Browser, table: str) -> list[list[str]]:
    """Return the cells of a table's rows."""
    found = browser.run(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]"
        ".map((row) => [...row.children].map((cell) => cell.innerText))",
        table,
    )
    return [list(row) for row in found]


def test_page_shows_the_figures_of_the_json(scene: Scene) -> None:
    browser = scene.browser
    status = scene.status()
    browser.wait(lambda: tile(browser, "Calls saved") == f"{status['requests']['saved']:,}")
    assert browser.text("#imds") == "✓ IMDS answers"
    assert tile(browser, "From the cache").endswith(" %")
    assert tile(browser, "Permits free").endswith("of 5")
    assert [row[0] for row in rows(browser, "hour")] == list(status["imds"]["last_hour"])
    assert rows(browser, "clients")[0][0].startswith("user ")
    assert ["Freeze", "1"] in rows(browser, "events")
    assert [row[0] for row in rows(browser, "listeners")] == [scene.proxy.url, f"http://127.0.0.1:{scene.admin}"]
    settings = {row[0]: row[1:] for row in rows(browser, "settings")}
    assert settings["IMDSPROXY_MAX_WAIT"] == ["2", "environment IMDSPROXY_MAX_WAIT"]


def test_page_names_tokens_without_their_identity(scene: Scene) -> None:
    tokens = rows(scene.browser, "tokens")
    assert ("https://vault.azure.net", "default") in {tuple(row[:2]) for row in tokens}
    assert len([row for row in tokens if row[0] == "https://vault.azure.net"]) == 2
    (failing,) = [row for row in tokens if "status 400" in row[4]]
    assert failing[2] == "not cached"
    text = scene.browser.run("return document.documentElement.outerHTML")
    assert FIRST not in text
    assert UNKNOWN not in text


def test_page_makes_no_request_and_breaks_no_policy(scene: Scene) -> None:
    assert scene.browser.run("return performance.getEntriesByType('resource').length") == 0
    assert scene.browser.logs() == []


def test_page_can_be_read_without_eyes_and_without_a_mouse(scene: Scene) -> None:
    browser = scene.browser
    nodes = browser.devtools("Accessibility.getFullAXTree")["nodes"]
    found = [(node.get("role", {}).get("value"), node.get("name", {}).get("value", "")) for node in nodes]
    assert ("heading", "Requests of the last 15 minutes") in found
    assert ("status", "") in found or any(role == "status" for role, _ in found)
    images = [name for role, name in found if role in {"image", "img"}]
    assert len(images) == 2
    assert all(
        name.startswith(("Requests by outcome in the last 15 minutes: hit", "In the last 15 minutes"))
        for name in images
    )
    reached = set()
    for _ in range(20):
        for kind in ("keyDown", "keyUp"):
            browser.devtools("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(browser.run("return document.activeElement.id || document.activeElement.tagName"))
    assert {"A", "SUMMARY", "tokens", "cache", "settings"} <= reached


@pytest.mark.parametrize(
    ("name", "width", "height", "dark"),
    [
        ("status", 1200, 1500, False),
        ("status-dark", 1200, 1500, True),
        ("status-phone", 390, 1600, True),
        ("status-phone-light", 390, 1600, False),
    ],
)
def test_page_fits_its_window(scene: Scene, name: str, width: int, height: int, dark: bool) -> None:
    browser = scene.browser
    browser.run("document.activeElement.blur(); scrollTo(0, 0)")
    browser.resize(width, height, dark=dark)
    browser.wait(lambda: browser.run("return innerWidth") == width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(16, 21, 28)" if dark else "rgb(246, 247, 249)")
    scene.picture(name)


def test_markup_of_clients_is_text(scene: Scene) -> None:
    browser = scene.browser
    path = MARKUP_IN_URL.replace("%2F", "").replace("%20", "")
    for target in (
        f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource={MARKUP_IN_URL}&client_id={UNKNOWN}",
        f"/metadata/instance?api-version=2021-02-01&tag={MARKUP_IN_URL}",
        f"/metadata/instance/{path}?api-version={MARKUP_IN_URL}",
    ):
        get(scene.proxy.port, target)
    browser.wait(lambda: any(row[0] == MARKUP for row in rows(browser, "tokens")))
    assert browser.run("return document.images.length + document.querySelectorAll('main script').length") == 0
    assert "taken" not in browser.run("return document.title")
    assert browser.logs() == []


def test_page_refreshes_itself(scene: Scene) -> None:
    before = scene.browser.text("#process")
    scene.browser.wait(lambda: scene.browser.text("#process") != before)
    assert scene.browser.run("return document.querySelectorAll('wbr, body > script[type]').length") <= 2, "they pile up"


def test_page_that_the_user_reloads_is_served(scene: Scene) -> None:
    scene.browser.devtools("Page.reload")
    scene.browser.wait(lambda: "live" in scene.browser.text("#live"))


def test_page_says_that_imds_fails_and_why(scene: Scene) -> None:
    browser = scene.browser
    scene.imds.emulator.faults.add(Fault(status=500))
    try:
        for _ in range(3):
            get(scene.proxy.port, "/metadata/instance/compute/name?api-version=2021-02-01&format=text")
            time.sleep(1)
        browser.resize(1200, 1500)
        browser.wait(lambda: browser.text("#imds") == "✕ IMDS fails")
        assert "status 500" in browser.text("#imds-detail")
        assert browser.run("return document.title").startswith("✕ IMDS fails")
        scene.picture("status-failing")
    finally:
        scene.imds.emulator.faults.clear()


def test_page_says_that_the_proxy_is_gone_and_keeps_the_figures(scene: Scene) -> None:
    browser = scene.browser
    scene.proxy.signal(signal.SIGTERM)
    browser.wait(lambda: "The proxy is gone since" in browser.text("#live"))
    assert rows(browser, "tokens")
    assert scene.proxy.process.wait(30) == 0
    scene.picture("status-gone")
