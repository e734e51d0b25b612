"""The requests of clients with a hard-coded address, byte for byte, as docs/clients.md lists them."""

from __future__ import annotations

import pytest

from imdsproxy.emulator import Emulator, run_in_thread
from tests.system.hard_coded import CLIENTS, Client, need
from tests.system.hosts import Host

pytestmark = pytest.mark.system

ADDRESS = "169.254.169.254"
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
Sent = tuple[str, str | None, str, str]

# Target, Metadata, Connection and the beginning of User-Agent, of each request in turn.
REQUESTS: dict[str, list[Sent]] = {
    "detector": [("/metadata/instance/compute?api-version=2021-12-13&format=json", "True", "close", "Python-urllib/")],
    "exporter": [
        ("/metadata/instance/compute?api-version=2017-12-01&format=json", "True", "keep-alive", "python-requests/")
    ],
    "msal region": [("/metadata/instance/compute?api-version=2021-02-01", "true", "keep-alive", "python-requests/")],
    "cloud-init": [
        ("/metadata/instance?api-version=2021-08-01&extended=true", "true", "keep-alive", "Cloud-Init/"),
    ],
    "cloud-init network": [
        ("/metadata/instance/network?api-version=2021-08-01", "true", "keep-alive", "Cloud-Init/"),
    ],
    "waagent": [("/metadata/instance/compute?api-version=2018-02-01", "True", "close", "WALinuxAgent/")],
    "waagent health": [("/metadata/instance?api-version=2018-02-01", "True", "close", "WALinuxAgent/")],
    "azure-identity system": [(TOKEN, "true", "keep-alive", "azsdk-python-identity/")],
    "azure-identity client_id": [(TOKEN, "true", "keep-alive", "azsdk-python-identity/")],
    "default system": [
        (TOKEN, None, "keep-alive", "azsdk-python-identity/"),
        (TOKEN, "true", "keep-alive", "azsdk-python-identity/"),
    ],
    "default client_id": [
        (TOKEN, None, "keep-alive", "azsdk-python-identity/"),
        (TOKEN, "true", "keep-alive", "azsdk-python-identity/"),
    ],
    "msal system": [(TOKEN, "true", "keep-alive", "python-requests/")],
    "msal resource_id": [(TOKEN, "true", "keep-alive", "python-requests/")],
}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_client_sends_the_documented_requests_without_a_proxy(client: Client) -> None:
    need(client)
    with Host("alone") as host, host.inside():
        host.ip(f"addr add {ADDRESS}/32 dev lo")
        with run_in_thread(Emulator(), ADDRESS, 80) as server:
            assert client.found(host) == client.truth
    expected = REQUESTS[client.name]
    for arrival, (target, metadata, connection, agent) in zip(server.emulator.arrivals, expected, strict=True):
        sent = {name.decode(): value.decode() for name, value in arrival.headers}
        token = target == TOKEN
        assert (arrival.method, arrival.target.decode()[: len(target) if token else None]) == ("GET", target)
        assert (sent.get("metadata"), sent["connection"], sent["host"]) == (metadata, connection, ADDRESS)
        assert sent["user-agent"].startswith(agent)
        assert "x-forwarded-for" not in sent
