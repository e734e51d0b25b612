"""The good clients: each asks again and again for the whole run, whatever the floods do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.loads.client import Response
from benchmarks.machine.processes import ROOT
from benchmarks.soak.exchange import EVENTS, INSTANCE, TOKEN, connected, exchange, get
from benchmarks.soak.outcomes import CLOSED, WRONG
from benchmarks.soak.state import Run, Work

Client = Callable[[Run, float], Work]
"""A client of a run; the second argument is by how much its pauses are shortened (1 is not at all)."""

_RESOURCES = ("vault", "storage", "database", "management")
_END_SECONDS = 5.0
_MOST_DETAIL = 300


@dataclass(frozen=True, slots=True)
class Polled:
    """A document that is polled over one connection, and what is right about it."""

    targets: Sequence[bytes]
    right: Callable[[object], bool]
    seconds: float


def _is_instance(document: object) -> bool:
    return isinstance(document, dict) and bool(document.get("compute", {}).get("vmId"))


def _is_token(document: object) -> bool:
    return isinstance(document, dict) and int(document["expires_on"]) > time.time() and int(document["expires_in"]) > 0


def _is_events(document: object) -> bool:
    return isinstance(document, dict) and isinstance(document.get("Events"), list)


POLLED: Mapping[str, Polled] = {
    "instance": Polled([INSTANCE], _is_instance, 1.0),
    "token": Polled([TOKEN % b"%s.azure.net" % each.encode() for each in _RESOURCES], _is_token, 1.5),
    "scheduled events": Polled([EVENTS], _is_events, 1.0),
}


async def _poll(run: Run, name: str, faster: float) -> None:
    polled = POLLED[name]
    while True:
        # A connection serves for many requests, as in client libraries, and is closed where one failed.
        with contextlib.suppress(_LostError):
            async with connected(run.port) as connection:
                for _ in range(run.chance.randint(1, 40)):
                    async with run.request(name) as request:
                        response = await exchange(connection, get(run.chance.choice(polled.targets)))
                        request.end(*_outcome(response, polled.right))
                    if request.outcome == CLOSED:
                        raise _LostError
                    await run.pace.wait(polled.seconds / faster)
        await run.pace.wait(polled.seconds / faster)


class _LostError(Exception):
    """The connection is of no further use."""


def _outcome(response: Response, right: Callable[[object], bool]) -> tuple[str, str]:
    if response.status != 200:
        return str(response.status), response.body[:_MOST_DETAIL].decode("latin-1")
    try:
        return ("200", "") if right(json.loads(response.body)) else (WRONG, response.body[:_MOST_DETAIL].decode())
    except (ValueError, KeyError):
        return WRONG, response.body[:_MOST_DETAIL].decode("latin-1")


async def _curl(run: Run, program: str, faster: float) -> None:
    target = f"http://127.0.0.1:{run.port}{INSTANCE.decode()}"
    command = [program, "-s", "-o", os.devnull, "-w", "%{http_code}", "--noproxy", "*", "-H", "Metadata: true", target]
    while True:
        async with run.request("curl") as request:
            status, out, _ = await _ended(command)
            request.end(out if status == 0 else f"exit status {status}")
        await run.pace.wait(4 / faster)


async def _command(run: Run, words: Sequence[str], seconds: float, faster: float) -> None:
    command = [sys.executable, "-m", "imdsproxy", *words, *_place(run)]
    while True:
        await run.pace.wait(seconds / faster / 2)
        async with run.request(f"imdsproxy {words[0]}") as request:
            status, _, error = await _ended(command)
            request.end("200" if status == 0 else _status_in(error), error[:_MOST_DETAIL])
        await run.pace.wait(seconds / faster / 2)


def _place(run: Run) -> list[str]:
    return ["--port", str(run.port), "--uds", str(run.socket), "--upstream", "http://127.0.0.1:9"]


def _status_in(error: str) -> str:
    return next((word for word in ("410", "429", "500", "502", "503", "504") if word in error), "failed")


async def _ended(command: Sequence[str]) -> tuple[int, str, str]:
    async with _process(command, stderr=PIPE) as process:
        out, error = await process.communicate()
        return process.returncode or 0, out.decode(), " ".join(error.decode().split())


@contextlib.asynccontextmanager
async def _process(
    command: Sequence[str], *, stdin: int = DEVNULL, stderr: int = DEVNULL, **settings: str
) -> AsyncIterator[Process]:
    """Run a command in a session of its own, so that Ctrl-C is not for it, and end it with the block."""
    inherited = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=stdin,
        stdout=PIPE,
        stderr=stderr,
        cwd=ROOT,
        env={**inherited, **settings},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _END_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _library(run: Run, name: str, faster: float) -> None:
    command = [sys.executable, "-m", "benchmarks.soak.sdk", name]
    while True:
        authority = f"http://127.0.0.1:{run.port}"
        async with _process(command, stdin=PIPE, AZURE_POD_IDENTITY_AUTHORITY_HOST=authority) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if await process.stdout.readline() != b"ready\n":
                async with run.request(name) as request:
                    request.end("not started")
                return
            outcome = ""
            while outcome != CLOSED:
                async with run.request(name) as request:
                    resource = f"https://{run.chance.choice(_RESOURCES)}.azure.net"
                    process.stdin.write(f"{resource}\n".encode())
                    await process.stdin.drain()
                    outcome = (await process.stdout.readline()).decode().strip() or CLOSED
                    request.end(outcome)
                if request.outcome != outcome:  # it was too slow, and its answer would be that of the next request
                    break
                await run.pace.wait(3 / faster)


async def _watch(run: Run) -> None:
    """Watch scheduled events by one command for the whole run, which ends only if it fails."""
    command = [sys.executable, "-m", "imdsproxy", "events", "--watch", *_place(run)]
    async with _process(command) as process:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            async with run.request("imdsproxy events --watch") as request:
                request.end("200" if "EventId" in json.loads(line) else WRONG, line.decode())
        async with run.request("imdsproxy events --watch") as request:
            request.end(f"ended with {await process.wait()}")


def clients() -> tuple[dict[str, Client], dict[str, str]]:
    """Return the clients that this machine has, and why others are left out."""
    found: dict[str, Client] = {name: _polling(name) for name in POLLED}
    left_out: dict[str, str] = {}
    for name, words, seconds in (
        ("imdsproxy status", ["status", "--json"], 40.0),
        ("imdsproxy events", ["events", "--once"], 50.0),
        ("imdsproxy purge", ["purge"], 90.0),
    ):
        found[name] = _repeating(words, seconds)
    found["imdsproxy events --watch"] = lambda run, _faster: _watch(run)
    curl = shutil.which("curl")
    if curl is None:
        left_out["curl"] = "it is not installed"
    else:
        found["curl"] = lambda run, faster: _curl(run, curl, faster)
    for name, module in (("azure-identity", "azure.identity"), ("msal", "msal")):
        if _importable(module):
            found[name] = _by_library(name)
        else:
            left_out[name] = "it is not installed; requirements/dev.txt has it"
    return found, left_out


def _polling(name: str) -> Client:
    return lambda run, faster: _poll(run, name, faster)


def _repeating(words: Sequence[str], seconds: float) -> Client:
    return lambda run, faster: _command(run, words, seconds, faster)


def _by_library(name: str) -> Client:
    return lambda run, faster: _library(run, name, faster)


def _importable(module: str) -> bool:
    from importlib.util import find_spec  # noqa: PLC0415  # for this line alone

    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
