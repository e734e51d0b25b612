"""A developer's own access tokens, from the Azure CLI: `az account get-access-token`.

Four rules, because these tokens open real services with all rights of their owner:

1. They are lent only if asked for (`--tokens az`), and only on a loopback address.
2. A resource has the characters of a URL or an id and nothing else, so that it is no flag and, where `az` is a batch
   file (Windows), no command.
3. `az` gets a bounded time and no input. It is ended when the emulator ends.
4. Neither a token nor the output of `az` is logged. What a client gets to read of an error is one line.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

from imdsproxy.emulator.errors import LendError

TIMEOUT = 30.0
WARNING = (
    "WARNING: --tokens az hands out YOUR OWN Azure access tokens to every program and every user of this machine that "
    "asks {url}. They work at Azure with all your rights, also after the emulator has ended. Use it for as short a "
    "time as you can, and never where others are logged in."
)
_RESOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}")
_SETTINGS_OF_IDENTITY = ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "IDENTITY_ENDPOINT", "MSI_ENDPOINT")
"""What would lead `az` to the emulator, if its own login is that of a managed identity."""
_LONGEST_REASON = 300


class LentToken(NamedTuple):
    """An access token of the developer; `expires_on` is in seconds since 1970."""

    text: str
    expires_on: int


def is_loopback(host: str) -> bool:
    """Return whether a host is an address of this machine alone. A name is not: it may be bound to any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AzTokens:
    """Asks `az`, one question at a time. Blocks while it does. Safe to use from any thread."""

    def __init__(self, executable: str, timeout: float = TIMEOUT) -> None:
        self._executable = executable
        self._timeout = timeout
        self._turn = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._ended = False

    @classmethod
    def found(cls) -> AzTokens:
        """Return the Azure CLI of this machine; raise LendError if there is none."""
        executable = shutil.which("az")
        if executable is None:
            raise LendError(400, "the Azure CLI, az, is not found on PATH; install it and log in with `az login`")
        return cls(executable)

    def lend(self, resource: str) -> LentToken:
        """Return a token for a resource.

        Raises:
            LendError: The resource has other characters, or `az` fails, is too slow, or answers with no token.
        """
        if not _RESOURCE.fullmatch(resource):
            raise LendError(400, "the resource has characters that no resource of Azure has; it is not given to az")
        with self._turn:
            output = self._run(resource)
        try:
            document = json.loads(output)
            return LentToken(str(document["accessToken"]), _expiry(document))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise LendError(400, "az answered with no token; try `az account get-access-token` by hand") from None

    def end(self) -> None:
        """End a running `az`, and start none any more."""
        self._ended = True
        running = self._running
        if running is not None:
            _kill(running)

    def _run(self, resource: str) -> bytes:
        command = [self._executable, "account", "get-access-token", f"--resource={resource}", "--output=json"]
        environment = {name: value for name, value in os.environ.items() if name not in _SETTINGS_OF_IDENTITY}
        try:
            process = subprocess.Popen(  # noqa: S603 - no shell, and the resource has been checked
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise LendError(400, f"az cannot be started: {error.strerror or error}") from None
        self._running = process
        with process:
            try:
                if self._ended:
                    _kill(process)
                output, errors = process.communicate(timeout=self._timeout)
            except subprocess.TimeoutExpired:
                _kill(process)
                raise LendError(500, f"az has not answered within {self._timeout:g} s") from None
            finally:
                self._running = None
        if process.returncode:
            raise LendError(400, f"az: {_reason(errors)}")
        return output


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill `az`; on POSIX with what it has started, because it is a script that waits for Python."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _reason(errors: bytes) -> str:
    """Return what `az` gives as its reason, in one line: the one marked as an error, or else the last."""
    lines = [line.strip() for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    marked = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    reason = (marked or lines[-1:] or ["it failed and said nothing"])[0]
    return "".join(character for character in reason if character.isprintable())[:_LONGEST_REASON]


def _expiry(document: dict[str, Any]) -> int:
    """Return the expiry. Before version 2.54 `az` gives it in local time only."""
    if "expires_on" in document:
        return int(document["expires_on"])
    return int(dt.datetime.fromisoformat(document["expiresOn"]).astimezone().timestamp())
