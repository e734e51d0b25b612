"""Request tokens, or the region, by msal. The argument is a request in JSON; the result is JSON on standard output.

`{"identity": parameters of UserAssignedManagedIdentity, or {} for the machine's own, "resources": [...]}`, or
`{"region": true}`. With `hard` it goes to 169.254.169.254; finding the region always does.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import msal
import msal.region
import requests

from tests.clients import guard
from tests.loopback import only_loopback


def tokens(order: dict[str, Any]) -> list[dict[str, Any]]:
    named = order["identity"]
    identity = msal.UserAssignedManagedIdentity(**named) if named else msal.SystemAssignedManagedIdentity()
    client = msal.ManagedIdentityClient(identity, http_client=requests.Session())
    got = []
    for resource in order["resources"]:
        began = time.monotonic()
        answer = client.acquire_token_for_client(resource=resource)
        now = time.time()
        if "access_token" not in answer:
            raise SystemExit(f"no token: {answer}")
        seconds = time.monotonic() - began
        expires_on = int(now) + answer["expires_in"]
        got.append({"token": answer["access_token"], "expires_on": expires_on, "seconds": seconds})
    return got


def region() -> dict[str, Any]:
    began = time.monotonic()
    found = msal.region._detect_region(requests.Session())
    return {"got": found, "seconds": time.monotonic() - began}


def main() -> None:
    """Obey the command line."""
    order = json.loads(sys.argv[1])
    if order.get("hard") or order.get("region"):
        guard.only_in_a_namespace()
    else:
        only_loopback()
    json.dump(region() if order.get("region") else tokens(order), sys.stdout)


if __name__ == "__main__":
    main()
