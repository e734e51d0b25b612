"""A headless Chromium, driven over WebDriver (W3C) by as much of a client as the tests need."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

TOOLS = ("chromium", "chromedriver")
# Without these, Chromium looks for its maker's servers, and as root it does not start.
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    "--no-proxy-server",
)
_STARTED = re.compile(r"started successfully on port (\d+)")
_START = 60.0


def missing() -> str:
    """Return what this machine lacks to run a browser; empty if it lacks nothing."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


class Browser:
    """One window."""

    def __init__(self, port: int, session: str) -> None:
        self._port = port
        self._path = f"/session/{session}"

    def open(self, url: str) -> None:
        """Begin to load a page, and do not wait for its end."""
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """Return what the body of a function returns in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """Return the text of the first element as a person sees it; empty if there is none."""
        return str(
            self.run(
                "const found = document.querySelector(arguments[0]); return found ? found.innerText : ''", selector
            )
        )

    def devtools(self, command: str, **parameters: object) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the page in CSS pixels, and a light or dark background."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> None:
        """Save the window as PNG."""
        file.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def logs(self) -> list[str]:
        """Return what pages said on the console since the last call, such as violations of their policy."""
        said = [str(entry["message"]) for entry in self._ask("POST", "/se/log", {"type": "browser"})]
        return [message for message in said if not message.startswith("chrome://")]

    def wait(self, true: Callable[[], object], seconds: float = 30.0) -> None:
        """Wait until the callable returns something true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"waited too long; the page says {self.text('body')[:2000]!r}"
            time.sleep(0.05)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        return ask(self._port, method, self._path + path, body)


def ask(port: int, method: str, path: str, body: object = None) -> Any:
    """Send a command to the driver, and return its value."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json; charset=utf-8"})
        response = connection.getresponse()
        value = json.loads(response.read())["value"]
    finally:
        connection.close()
    assert response.status == 200, value
    return value


@contextlib.contextmanager
def running_browser(folder: Path) -> Iterator[Browser]:
    """Run the driver and a browser in it, with a profile that goes with the folder."""
    log = folder / "chromedriver.log"
    with log.open("w", encoding="utf-8") as output:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=output, stderr=subprocess.STDOUT)
    try:
        port = _port(driver, log)
        options = {"args": [*_FLAGS, f"--user-data-dir={folder / 'profile'}"]}
        wanted = {
            "pageLoadStrategy": "none",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = ask(port, "POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        try:
            yield Browser(port, session)
        finally:
            ask(port, "DELETE", f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(15)


def _port(driver: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + _START
    while time.monotonic() < end:
        found = _STARTED.search(log.read_text(encoding="utf-8"))
        if found:
            return int(found[1])
        assert driver.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.05)
    raise AssertionError("the driver does not say where it listens")
