"""What the IMDS of these tests says, written so that a client can tell when, and to whom, it was said."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import parse_qs

INSTANCE = "/metadata/instance?api-version=2021-02-01"
NETWORK = "/metadata/instance/network?api-version=2021-02-01"
NEW = "/metadata/instance/compute/tagsList?api-version=2021-02-01&n="
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net&client_id="
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"

LIFE = 86_399
"""Seconds that the token of an ordinary identity lives."""
SHORT_LIFE = 303
"""Seconds that the token of the identity `short` lives."""
NEVER_STORED = 300
"""The proxy stores no token for the last seconds of its life."""
NETWORK_FRESH, NETWORK_STALE = 1.0, 5.0
"""The proxy's settings for `NETWORK`, in seconds, so that a fault outlasts its stale bound."""


@dataclass(frozen=True)
class Asked:
    """A request as it arrived at IMDS, `at` seconds of the event loop."""

    at: float
    method: str
    target: str
    body: bytes = b""


def say(asked: Asked, now: float) -> bytes:
    """Return the document for a request that IMDS answers at `now`."""
    path, _, query = asked.target.partition("?")
    if path.endswith("/versions"):
        return b'{"apiVersions":["2021-02-01"]}'
    if path.endswith("/token"):
        return _token(parse_qs(query)["client_id"][0], now)
    said: dict[str, object] = {"target": asked.target, "at": now}
    if path.endswith("/scheduledevents"):
        said |= {"DocumentIncarnation": 1, "Events": []}
    elif path.endswith("/instance"):
        said |= {"compute": {"vmId": "x"}, "network": {}}
    return json.dumps(said).encode()


def _token(identity: str, now: float) -> bytes:
    life = SHORT_LIFE if identity == "short" else LIFE
    return json.dumps(
        {
            "access_token": f"{identity}.{now}",
            "client_id": identity,
            "expires_in": str(life),
            "resource": "https://vault.azure.net",
            "token_type": "Bearer",
        }
    ).encode()
