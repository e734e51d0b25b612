"""`imdsproxy demo`: an emulated IMDS in a process of its own, the proxy in front of it, commands to try."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from imdsproxy.cli.standard_streams import complain, show
from imdsproxy.errors import SettingsError
from imdsproxy.settings.forked_loader import read_config

EMULATOR_PORT = 8255

# Sixty different targets at once take eleven seconds; the demo lets all of them wait.
_MAX_WAIT = "30"
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


class _Lines(NamedTuple):
    """The parts of the commands to try that differ between shells."""

    curl: str
    quote: str
    export: str
    value: str
    kill: str


_LINES = _Lines("curl", "'", "export ", "", "kill")
# For PowerShell and cmd, except `export`, which is PowerShell's. In Windows PowerShell `curl` is an alias.
_WINDOWS_LINES = _Lines("curl.exe", '"', "$env:", '"', "taskkill /F /PID")


def demo(flags: Mapping[str, str]) -> int:
    """Run until Ctrl-C, and return the exit status.

    Args:
        flags: Settings by field name.

    Raises:
        SettingsError: A setting cannot be used.
    """
    # A SIGTERM during the start must end the emulator too. Once the proxy serves, uvicorn handles the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if "upstream" in flags:
        raise SettingsError("IMDSPROXY_UPSTREAM (flag --upstream) is the demo's own emulator; use imdsproxy serve")
    if _taken(EMULATOR_PORT):
        complain(
            f"imdsproxy: port {EMULATOR_PORT} is needed for the demo's emulator and is in use; "
            "stop the program that listens there"
        )
        return 2
    upstream = f"http://127.0.0.1:{EMULATOR_PORT}"
    read = read_config(lambda: {"max_wait": _MAX_WAIT, **flags, "upstream": upstream})
    with _emulator() as process:
        if process is None:
            return 2
        from imdsproxy.cli.serve import serve  # noqa: PLC0415  # not needed if the emulator fails
        from imdsproxy.ops import logs  # noqa: PLC0415  # the same

        logs.configure(read.config.log_level, read.config.log_format)
        return serve(read, announce=lambda address: _show(address, upstream, process.pid))


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, _PORT_RULE, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


@contextlib.contextmanager
def _emulator() -> Iterator[subprocess.Popen[str] | None]:
    """Run the emulator during the block. The value is its process, or None if it failed and wrote the reason."""
    command = [sys.executable, "-m", "imdsproxy.emulator", "--port", str(EMULATOR_PORT)]
    ending = threading.Event()
    with subprocess.Popen(  # noqa: S603  # our own module
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, creationflags=_CREATION_FLAGS
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("emulator: "):
                process.wait(_START)
                yield None
                return
            threading.Thread(target=_report_end, args=(process, ending), daemon=True).start()
            yield process
        finally:
            ending.set()
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END)
            if process.poll() is None:
                process.kill()


def _report_end(process: subprocess.Popen[str], ending: threading.Event) -> None:
    process.wait()
    if not ending.is_set():
        complain("the emulator has stopped; cached answers are still served")


def _show(address: str, emulator: str, pid: int) -> None:
    target = f"{address}/metadata/instance?api-version=2021-02-01"
    token = f"{address}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
    lines = _WINDOWS_LINES if sys.platform == "win32" else _LINES
    show(
        f"""
imdsproxy  {address}   in front of an emulated IMDS, {emulator} (process {pid})

Ask twice; the second answer is a hit (Cache-Status, Age):
  {lines.curl} -i -H Metadata:true {lines.quote}{target}{lines.quote}

A managed identity's token, whose expires_in is its remaining life at that moment:
  {lines.curl} -s -H Metadata:true {lines.quote}{token}{lines.quote}

PowerShell:
  Invoke-RestMethod -NoProxy -Headers @{{"Metadata"="true"}} -Uri "{target}"

Azure's own client libraries (azure-identity, MSAL), unchanged:
  {lines.export}AZURE_POD_IDENTITY_AUTHORITY_HOST={lines.value}{address}{lines.value}

Sixty different targets at once take eleven seconds, five a second; all of them wait (--max-wait {_MAX_WAIT}).
In a browser, what the proxy does: {address}/-/status
Metrics: {address}/-/metrics
Stop IMDS ({lines.kill} {pid}) and ask again: cached answers are still served.
Ctrl-C stops both.

"""
    )
