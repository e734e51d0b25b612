"""`imdsproxy demo`: an emulated IMDS in a process of its own, the proxy in front of it, a tour, commands to try."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from imdsproxy.cli.standard_streams import complain, show
from imdsproxy.cli.tour import SHORT_LIFE, SHORT_LIVED, Tour, TourEndedError
from imdsproxy.config import SettingInForce
from imdsproxy.errors import SettingsError
from imdsproxy.settings.forked_loader import ReadConfig, read_config
from imdsproxy.settings.parsers import shown

EMULATOR_PORT = 8255

# Sixty different targets at once take eleven seconds; the demo lets all of them wait.
_MAX_WAIT = 30.0
# The emulator gets a session or process group of its own, so that Ctrl-C reaches only the proxy, which then ends it.
if sys.platform == "win32":
    _CREATION_FLAGS = subprocess.CREATE_NEW_PROCESS_GROUP
    # On Windows two programs may share a port unless one of them forbids it.
    _PORT_RULE = socket.SO_EXCLUSIVEADDRUSE
else:
    _CREATION_FLAGS = 0
    _PORT_RULE = socket.SO_REUSEADDR
_START = 15.0
_END = 5.0
_NOTICE = 1.0
_LAST_PORT = 65_535
_EMULATOR_LINE = "emulator: "


class _Lines(NamedTuple):
    """The parts of the commands to try that differ between shells."""

    curl: str
    quote: str
    export: str
    value: str
    kill: str


class _Emulator(NamedTuple):
    """The emulator's process, and its URL."""

    process: subprocess.Popen[str]
    url: str


_LINES = _Lines("curl", "'", "export ", "", "kill")
# For PowerShell and cmd, except `export`, which is PowerShell's. In Windows PowerShell `curl` is an alias.
_WINDOWS_LINES = _Lines("curl.exe", '"', "$env:", '"', "taskkill /F /PID")


def demo(flags: Mapping[str, str], options: Mapping[str, str]) -> int:
    """Run until Ctrl-C, and return the exit status.

    Args:
        flags: Settings by field name.
        options: `emulator-port` and `no-tour`, where they were given.

    Raises:
        SettingsError: A setting cannot be used.
    """
    # A SIGTERM during the start must end the emulator too. Once the proxy serves, uvicorn handles the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if "upstream" in flags:
        raise SettingsError("IMDSPROXY_UPSTREAM (flag --upstream) is the demo's own emulator; use imdsproxy serve")
    port = _port(options.get("emulator-port", str(EMULATOR_PORT)))
    if port and _taken(port):
        complain(
            f"imdsproxy: port {port} is needed for the demo's emulator and is in use; "
            "stop the program that listens there, or choose another port with --emulator-port (0 takes a free one)"
        )
        return 2
    with _emulator(port) as emulator:
        if emulator is None:
            return 2
        read = read_config(lambda: {**flags, "upstream": emulator.url})
        read = _adapted(read, tour="no-tour" not in options)
        from imdsproxy.cli.serve import serve  # noqa: PLC0415  # not needed if the emulator fails
        from imdsproxy.ops import logs  # noqa: PLC0415  # the same

        logs.configure(read.config.log_level, read.config.log_format)
        guide = _Guide(emulator, read.config.max_wait, tour="no-tour" not in options)
        threading.Thread(target=_report_end, args=(emulator, guide.ending), daemon=True).start()
        try:
            return serve(read, announce=guide.start)
        finally:
            guide.end()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _LAST_PORT:
        raise SettingsError(f'--emulator-port is "{shown(text)}", but must be a whole number from 0 to {_LAST_PORT}')
    return int(text)


def _adapted(read: ReadConfig, *, tour: bool) -> ReadConfig:
    """Return the configuration with the values of the demo, where the user has set no others."""
    chosen = {setting.name for setting in read.differing}
    values: dict[str, tuple[str, Any, str]] = {"IMDSPROXY_MAX_WAIT": ("max_wait", _MAX_WAIT, f"{_MAX_WAIT:g}")}
    if tour:
        # The tour needs this one; it is added to the user's own.
        ttl = (*(pair for pair in read.config.ttl if pair[0] != SHORT_LIVED), (SHORT_LIVED, SHORT_LIFE))
        values["IMDSPROXY_TTL"] = ("ttl", ttl, ",".join(f"{path}={seconds:g}" for path, seconds in ttl))
        chosen.discard("IMDSPROXY_TTL")
    config, differing = read.config, list(read.differing)
    for name, (field, value, told) in values.items():
        if name not in chosen:
            config = replace(config, **{field: value})
            differing = [setting for setting in differing if setting.name != name]
            differing.append(SettingInForce(name, told, "the demo"))
    return read._replace(config=config, differing=tuple(differing))


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, _PORT_RULE, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@contextlib.contextmanager
def _emulator(port: int) -> Iterator[_Emulator | None]:
    """Run the emulator during the block. The value is None if it failed and wrote the reason."""
    command = [sys.executable, "-m", "imdsproxy.emulator", "--port", str(port)]
    with subprocess.Popen(  # noqa: S603  # our own module
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, creationflags=_CREATION_FLAGS
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith(_EMULATOR_LINE):
                process.wait(_START)
                yield None
                return
            yield _Emulator(process, line.removeprefix(_EMULATOR_LINE).strip())
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END)
            if process.poll() is None:
                process.kill()


def _report_end(emulator: _Emulator, ending: threading.Event) -> None:
    emulator.process.wait()
    if not ending.is_set():
        complain("the emulator has stopped; cached answers are still served")


class _Guide:
    """What the demo prints: the addresses, the tour, the lines to try.

    Args:
        emulator: The emulator.
        max_wait: Seconds that a request may wait for a permit.
        tour: Whether to take the tour.
    """

    def __init__(self, emulator: _Emulator, max_wait: float, *, tour: bool) -> None:
        self.ending = threading.Event()
        self._emulator = emulator
        self._max_wait = max_wait
        self._tour = tour
        self._thread: threading.Thread | None = None

    def start(self, address: str) -> None:
        """Print from a thread of its own, because the proxy serves in this one."""
        self._thread = threading.Thread(target=self._show, args=(address,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the tour. The interpreter must not end while the thread writes."""
        self.ending.set()
        if self._thread is not None:
            self._thread.join(_END)

    def _show(self, address: str) -> None:
        emulator = self._emulator
        show(f"\nimdsproxy      {address}\nemulated IMDS  {emulator.url}   (process {emulator.process.pid})\n")
        if self._tour:
            self._show_tour(address)
        if not self.ending.is_set():
            show(_lines(address, emulator.process.pid, self._max_wait))

    def _show_tour(self, address: str) -> None:
        show("\nA tour of five steps (--no-tour skips it). The emulator counts the requests that reach IMDS.\n\n")
        try:
            Tour(address, self._emulator.url, self.ending, lambda line: show(f"{line}\n")).run()
        except TourEndedError as reason:
            # Ctrl-C closes the listeners first, and the tour sees that before it is told.
            if not self.ending.wait(_NOTICE):
                show(f"The tour has ended early: {reason}.\n")


def _lines(address: str, pid: int, max_wait: float) -> str:
    target = f"{address}/metadata/instance?api-version=2021-02-01"
    token = f"{address}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
    lines = _WINDOWS_LINES if sys.platform == "win32" else _LINES
    return f"""
See what the proxy does, in a browser:
  {address}/-/status

Ask twice; the second answer is a hit (Cache-Status, Age):
  {lines.curl} -i -H Metadata:true {lines.quote}{target}{lines.quote}

A managed identity's token, whose expires_in is its remaining life at that moment:
  {lines.curl} -s -H Metadata:true {lines.quote}{token}{lines.quote}

PowerShell:
  Invoke-RestMethod -NoProxy -Headers @{{"Metadata"="true"}} -Uri "{target}"

Azure's own client libraries (azure-identity, MSAL), unchanged:
  {lines.export}AZURE_POD_IDENTITY_AUTHORITY_HOST={lines.value}{address}{lines.value}

Metrics: {address}/-/metrics
A request waits for its turn at IMDS for at most {max_wait:g} s (--max-wait).
Stop IMDS ({lines.kill} {pid}) and ask again: cached answers are still served.
Ctrl-C stops both.

"""
