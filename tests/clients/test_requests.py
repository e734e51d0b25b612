"""The requests of azure-identity and msal, byte for byte, as docs/clients.md lists them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest

from imdsproxy.emulator import Emulator, run_in_thread
from tests.clients.callers import CASES, Case, environment, result, start

pytestmark = [pytest.mark.process, pytest.mark.client]

TARGET = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
SELECTORS = {"client_id": "client_id", "object_id": "object_id", "resource_id": "msi_res_id"}
HEADERS = {
    "accept": r"\*/\*",
    "accept-encoding": "gzip, deflate",
    "connection": "keep-alive",
    "host": r"127\.0\.0\.1:\d+",
    "metadata": "true",
    "user-agent": r"(azsdk-python-identity/1\.\S+ Python/|python-requests/2\.).*",
    "x-client-sku": r"MSAL\.Python",
    "x-client-ver": r"1\.\d+\.\d+",
    "x-ms-client-request-id": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_client_sends_one_request_with_its_identity(tmp_path: Path, case: Case) -> None:
    with run_in_thread(Emulator()) as server:
        result(start(case, environment(tmp_path, server.url)))
    (arrival,) = server.emulator.arrivals
    # azure-identity leaves : and / as they are, msal writes them as %3A and %2F.
    safe = "" if case.caller == "call_msal" else ":/"
    target = TARGET + quote(case.resource, safe=safe)
    for word, name in SELECTORS.items():
        if case.name.endswith(word):
            target += f"&{name}={quote(getattr(case.identity, word), safe=safe)}"
    assert (arrival.method, arrival.target.decode()) == ("GET", target)
    sent = {name.decode(): value.decode() for name, value in arrival.headers}
    assert sent.keys() == HEADERS.keys()
    for name, value in sent.items():
        assert re.fullmatch(HEADERS[name], value), (name, value)
