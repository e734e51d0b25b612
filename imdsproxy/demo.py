"""`imdsproxy demo`: an emulated IMDS in a process of its own, the real proxy in front of it, lines to try."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping

EMULATOR_PORT = 8255

# Sixty different targets at once take eleven seconds; the demo lets all of them wait.
_MAX_WAIT = "30"
_START = 15.0
_END = 5.0


def demo(flags: Mapping[str, str]) -> int:
    """Run until Ctrl-C; flags are settings by name. Gives the exit status. Raises SettingsError."""
    with _emulator() as started:
        if started is None:
            return 2
        url, pid = started
        # Only now: the proxy's imports take place while the emulator starts.
        from imdsproxy import logs  # noqa: PLC0415
        from imdsproxy.server import serve  # noqa: PLC0415
        from imdsproxy.settings import load  # noqa: PLC0415

        settings = load({"max_wait": _MAX_WAIT, **flags, "upstream": url}).settings
        logs.configure(settings.log_level, settings.log_format)
        return serve(settings, announce=lambda address: _show(address, url, pid))


@contextlib.contextmanager
def _emulator() -> Iterator[tuple[str, int] | None]:
    """Start the emulator; gives its address and process id, or None where it did not start and has said why."""
    command = [sys.executable, "-m", "imdsproxy.emulator", "--port", str(EMULATOR_PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # our own module
        try:
            line = process.stdout.readline() if process.stdout else ""
            url = line.removeprefix("emulator: ").strip()
            if not url.startswith("http://"):
                process.wait(_START)
                yield None
                return
            threading.Thread(target=_tell_end, args=(process,), daemon=True).start()
            yield url, process.pid
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END)
            if process.poll() is None:
                process.kill()


def _tell_end(process: subprocess.Popen[str]) -> None:
    process.wait()
    sys.stderr.write("the emulator has ended; what is cached is still served\n")


def _show(address: str, emulator: str, pid: int) -> None:
    target = f"{address}/metadata/instance?api-version=2021-02-01"
    token = f"{address}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
    sys.stdout.write(
        f"""
imdsproxy  {address}   in front of an emulated IMDS, {emulator} (process {pid})

Ask twice; the second answer is a hit (Cache-Status, Age):
  curl -i -H Metadata:true '{target}'

A managed identity's token, whose expires_in is what is left of it at that moment:
  curl -s -H Metadata:true '{token}'

PowerShell:
  Invoke-RestMethod -Headers @{{"Metadata"="true"}} -Uri "{target}"

Azure's own client libraries (azure-identity, MSAL), unchanged:
  export AZURE_POD_IDENTITY_AUTHORITY_HOST={address}

What it did: {address}/-/metrics
Take IMDS away (kill {pid}) and ask again: what is cached is still served.
Ctrl-C ends both.

"""
    )
    sys.stdout.flush()
