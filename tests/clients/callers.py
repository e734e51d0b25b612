"""Start the processes of clients, wait for them, and read their results."""

from __future__ import annotations

import base64
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imdsproxy.emulator.identity import SYSTEM_ASSIGNED, USER_ASSIGNED, Identity
from tests import forkserver
from tests.forkserver import ForkedProcess, Forkserver
from tests.kit import ROOT

Client = subprocess.Popen[str] | ForkedProcess
"""The process of a client."""

FIRST, SECOND = USER_ASSIGNED
PATIENCE = 100.0
"""Seconds after which a client is given up: more than 410's seventy."""
MOST_LATE = 2
"""Seconds: the client rounds, the proxy rounds, and IMDS does."""
_MOST_EARLY = 10
"""Seconds: IMDS may take so long to answer on a busy machine."""


@dataclass(frozen=True)
class Case:
    """One way in which a program asks for tokens, and the identity it means by it."""

    name: str
    caller: str
    order: Mapping[str, Any]
    identity: Identity = SYSTEM_ASSIGNED

    @property
    def resource(self) -> str:
        """A resource that no other case asks for, so that each finds the cache cold."""
        return f"https://{self.name.replace(' ', '-')}.example"


def _azure(name: str, identity: Identity = SYSTEM_ASSIGNED, **options: Any) -> Case:
    order = {"credential": "ManagedIdentityCredential", "options": options}
    return Case(f"azure-identity {name}", "call_azure_identity", order, identity)


def _default(name: str, identity: Identity = SYSTEM_ASSIGNED, **options: Any) -> Case:
    order = {"credential": "DefaultAzureCredential", "options": options}
    return Case(f"default {name}", "call_azure_identity", order, identity)


def _msal(name: str, identity: Identity = SYSTEM_ASSIGNED, **named: str) -> Case:
    return Case(f"msal {name}", "call_msal", {"identity": named}, identity)


CASES = (
    _azure("system"),
    _azure("client_id", FIRST, client_id=FIRST.client_id),
    _azure("config client_id", SECOND, identity_config={"client_id": SECOND.client_id}),
    _azure("config object_id", FIRST, identity_config={"object_id": FIRST.object_id}),
    _azure("config resource_id", SECOND, identity_config={"resource_id": SECOND.resource_id}),
    _default("system"),
    _default("client_id", SECOND, managed_identity_client_id=SECOND.client_id),
    _msal("system"),
    _msal("client_id", SECOND, client_id=SECOND.client_id),
    _msal("object_id", SECOND, object_id=SECOND.object_id),
    _msal("resource_id", FIRST, resource_id=FIRST.resource_id),
)


@dataclass(frozen=True)
class Got:
    """A token as a client has it: its text, when the client takes it to expire, how many seconds it took."""

    token: str
    expires_on: int
    seconds: float
    claims: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        part = self.token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        object.__setattr__(self, "claims", claims)

    def assert_remaining_life(self) -> None:
        """Fail unless the client takes the token to expire when it does, or a little before.

        The proxy counts the life from when it asked IMDS, so a slow answer makes it shorter, and never longer.
        """
        late = self.expires_on - self.claims["exp"]
        assert -_MOST_EARLY <= late <= MOST_LATE, f"{late} s late"


def environment(home: Path, authority: str | None = None, **more: str) -> dict[str, str]:
    """Return a client's whole environment: nothing of this machine's but where programs are."""
    ours = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home), **more}
    return ours if authority is None else {**ours, "AZURE_POD_IDENTITY_AUTHORITY_HOST": authority}


def command(caller: str, order: Mapping[str, Any], python: str = sys.executable) -> list[str]:
    """Return the command line of a caller with this order."""
    return [python, "-m", f"tests.clients.{caller}", json.dumps(order)]


def start(case: Case, env: Mapping[str, str], resources: Sequence[str] = (), **more: Any) -> Client:
    """Start a client that asks for the case's own resource, or for these."""
    order = {**case.order, "resources": list(resources) or [case.resource], **more}
    pipe = subprocess.PIPE
    if forkserver.AVAILABLE:
        module, arguments = f"tests.clients.{case.caller}", [json.dumps(order)]
        return _clients().start(module, arguments, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
    whole = command(case.caller, order)
    return subprocess.Popen(whole, env=env, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def result(process: Client, seconds: float = PATIENCE) -> list[Got]:
    """Wait for a client and return its tokens. Raise AssertionError with its output if it failed."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return [Got(**one) for one in json.loads(out)]


@functools.cache
def _clients() -> Forkserver:
    return Forkserver(sorted({f"tests.clients.{case.caller}" for case in CASES}))
