"""Request tokens by azure-identity. The argument is a request in JSON; the result is JSON on standard output.

`{"credential": class name, "options": its parameters, "resources": [...], "wait": true, "hard": true}`. With `wait`
it says `ready` once everything is loaded, and goes on when it is sent a line. With `hard` it goes to 169.254.169.254.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import azure.identity

from tests.clients import guard
from tests.loopback import only_loopback


def tokens(order: dict[str, Any]) -> list[dict[str, Any]]:
    credential = getattr(azure.identity, order["credential"])(**order["options"])
    if order.get("wait"):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
    got = []
    for resource in order["resources"]:
        began = time.monotonic()
        token = credential.get_token(f"{resource}/.default")
        seconds = time.monotonic() - began
        got.append({"token": token.token, "expires_on": token.expires_on, "seconds": seconds})
    return got


def main() -> None:
    """Obey the command line."""
    order = json.loads(sys.argv[1])
    if order.get("hard"):
        guard.only_in_a_namespace()
    else:
        only_loopback()
    json.dump(tokens(order), sys.stdout)


if __name__ == "__main__":
    main()
