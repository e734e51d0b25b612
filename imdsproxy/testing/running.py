"""A proxy in front of an IMDS, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from imdsproxy.testing.imds import Imds
from imdsproxy.testing.variables import set_variables

if TYPE_CHECKING:
    from collections.abc import Iterator

_START = 30.0
READY = 30.0
_END = 15.0
_PAUSE = 0.01
_PREFIX = "IMDSPROXY_"
_LISTENING = re.compile(r'\blistening\W+address\W+(http://[^\s"]+:\d+)')
_DIRECTLY = build_opener(ProxyHandler({}))


class ProxyStartError(RuntimeError):
    """The proxy did not start; the text is what it said."""


class Proxy:
    """A running proxy. `url` is for clients, without a trailing slash."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, url: str) -> None:
        self.url = url
        self.process = process
        self._log = log

    @property
    def port(self) -> int:
        """The port."""
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """What the proxy has logged, in whole lines."""
        return whole_lines(self._log)

    def status(self) -> dict[str, Any]:
        """Return what `/-/status.json` says: requests by outcome, budget, cache, tokens."""
        return dict(json.loads(_page(self.url, "/-/status.json")[1]))

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples, whatever their labels; 0 if there is none."""
        return metric_in(_page(self.url, "/-/metrics")[1].decode(), name)


@contextlib.contextmanager
def proxy(imds: Imds | str, *, environment: bool = True, ready: bool = True, **settings: object) -> Iterator[Proxy]:
    """Run the proxy in front of an IMDS during the block, on a free port of this machine.

    Its settings are those of the arguments alone: `IMDSPROXY_…` variables of this process do not reach it. What it asks
    at its start is not in the record of `imds`.

    Args:
        imds: An emulated IMDS, or the URL of one.
        environment: Whether to set `AZURE_POD_IDENTITY_AUTHORITY_HOST` during the block, so that client libraries find
            the proxy.
        ready: Whether to wait until IMDS has answered the proxy.
        settings: Settings named in lower case, such as `max_wait=2`.

    Raises:
        ProxyStartError: It did not start, because of a setting, for example. The text is what it said.
    """
    url = imds if isinstance(imds, str) else imds.url
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imdsproxy-", ignore_cleanup_errors=True)))
        process = _start(folder / "log", {"port": 0, "upstream": url, **settings})
        stack.callback(_end, process)
        running = Proxy(process, folder / "log", _address(process, folder / "log"))
        if ready:
            _wait_until_ready(running)
        if isinstance(imds, Imds):
            imds.forget()
        if environment:
            stack.enter_context(set_variables(running.url))
        yield running


def whole_lines(log: Path) -> str:
    """Return the whole lines of a log; one may just be being written."""
    text = log.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1]


def listening_in(log: str) -> str | None:
    """Return the first address on which a proxy says that it listens, None while it does not say so."""
    found = _LISTENING.search(log)
    return found[1] if found else None


def metric_in(text: str, name: str) -> float:
    """Return the sum of a metric's samples in the text of `/-/metrics`."""
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith((name + "{", name + " "))
    )


def _start(log: Path, settings: dict[str, object]) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_PREFIX)}
    ours = {f"{_PREFIX}{name.upper()}": _text(value) for name, value in settings.items()}
    with log.open("w", encoding="utf-8") as stderr:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "imdsproxy.testing.child"],
            env=kept | ours,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _START
    while time.monotonic() < end:
        ended = process.poll() is not None
        text = whole_lines(log)
        if url := listening_in(text):
            return url
        if ended:
            raise ProxyStartError(f"the proxy did not start:\n{text}")
        time.sleep(_PAUSE)
    raise ProxyStartError(f"the proxy has not said within {_START:g} s where it listens:\n{whole_lines(log)}")


def _wait_until_ready(running: Proxy) -> None:
    end = time.monotonic() + READY
    while True:
        status, body = _page(running.url, "/-/ready")
        if status == 200:
            return
        if time.monotonic() > end:
            reason = json.loads(body).get("error_description", "")
            raise ProxyStartError(f"the proxy is not ready after {READY:g} s: {reason}; ready=False does not wait")
        time.sleep(_PAUSE)


def _page(url: str, path: str) -> tuple[int, bytes]:
    try:
        with _DIRECTLY.open(url + path, timeout=_START) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
