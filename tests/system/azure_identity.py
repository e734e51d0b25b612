"""azure-identity, unchanged, in a pod."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.clients.callers import Got, environment
from tests.clients.guard import network
from tests.system.hard_coded import libraries
from tests.system.hosts import Host
from tests.system.topology import ORDINARY_USER


def token_by_azure_identity(pod: Host, resource: str, base: str | None = None) -> Got:
    """Ask by azure-identity as it is: at this base URL, or at 169.254.169.254, which it has built in."""
    with pod.inside():
        env = environment(Path(os.devnull), base, MADE_NETWORK=network())
    order = {"credential": "ManagedIdentityCredential", "options": {}, "resources": [resource], "hard": True}
    done = pod.run_module(
        "tests.clients.call_azure_identity",
        json.dumps(order),
        imported_by=libraries,
        env=env,
        user=ORDINARY_USER,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (got,) = (Got(**one) for one in json.loads(done.stdout))
    return got
