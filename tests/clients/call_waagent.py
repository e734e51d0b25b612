"""Run the requests to IMDS of waagent, the Azure Linux Agent, and print the result as JSON.

`{"what": "compute"}`, as when it starts, or `"health"`, as it does every minute. Runs under Debian's Python, with
waagent's code on its path and nothing of it installed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from azurelinuxagent.common.exception import HttpError
from azurelinuxagent.common.protocol.imds import get_imds_client
from azurelinuxagent.common.version import AGENT_VERSION

from tests.clients import guard

# Where it turns to when IMDS cannot be reached: Azure's other service on every host, which no test has.
NO_WIRESERVER = "127.0.0.1"


def main(order: dict[str, Any]) -> dict[str, Any]:
    client = get_imds_client(NO_WIRESERVER)
    began = time.monotonic()
    got: Any
    if order["what"] == "compute":
        try:
            got = vars(client.get_compute())
        except HttpError as error:
            got = str(error)
    else:
        got = client.validate()
    return {"got": got, "seconds": time.monotonic() - began, "version": AGENT_VERSION}


if __name__ == "__main__":
    guard.only_in_a_namespace()
    json.dump(main(json.loads(sys.argv[1])), sys.stdout)
