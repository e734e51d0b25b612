"""The clients that know only the address 169.254.169.254: how each is run, and what it must find out."""

from __future__ import annotations

import functools
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator.documents import at_version, extended_part
from imdsproxy.emulator.identity import SYSTEM_ASSIGNED, USER_ASSIGNED, Identity
from imdsproxy.emulator.samples import sample_instance
from tests.clients.callers import Got, command, environment
from tests.clients.guard import network
from tests.forkserver import Forkserver
from tests.kit import ROOT
from tests.system.hosts import Host
from tests.system.topology import ORDINARY_USER

INSTANCE = sample_instance()
COMPUTE = INSTANCE["compute"]
SECOND = USER_ASSIGNED[1]
DEBIANS_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Client:
    """A caller of `tests/clients`, its request, and its complete result.

    Where it is Debian's, `package` names the folder in .debian/. An impatient one waits a fifth of a second for an
    answer, and goes on with `nothing`.
    """

    name: str
    caller: str
    order: Mapping[str, Any]
    truth: Any
    package: str = ""
    nothing: Any = None

    @property
    def impatient(self) -> bool:
        """Whether its timeout is too short to outlast a failure of IMDS."""
        return self.nothing is not None

    @property
    def missing(self) -> str:
        """What this machine lacks to run it; empty if it lacks nothing."""
        if self.package and not _code(self.package).is_dir():
            return f"{self.package} is not unpacked in .debian/ (.ci/debian does that)"
        return ""

    def ask(self, host: Host, **more: Any) -> Any:
        """Run it in a host to its end and return its output. Raise AssertionError if it fails."""
        with host.inside():
            env = environment(Path(os.devnull), MADE_NETWORK=network())
        order = {**self.order, **more}
        if self.package:
            env["PYTHONPATH"] += f"{os.pathsep}{_code(self.package)}"
            variables = [f"{name}={value}" for name, value in env.items()]
            asked = command(self.caller, order, DEBIANS_PYTHON)
            return json.loads(host.run("env", "-i", *variables, *asked, user=ORDINARY_USER, timeout=120).stdout)
        done = host.run_module(
            f"tests.clients.{self.caller}",
            json.dumps(order),
            imported_by=libraries,
            env=env,
            user=ORDINARY_USER,
            timeout=120,
        )
        assert done.returncode == 0, f"{self.name}: {done.stderr}"
        return json.loads(done.stdout)

    def found(self, host: Host) -> Any:
        """Run it, and return its result, to be compared with `truth`."""
        said = self.ask(host)
        if "resources" not in self.order:
            return (said[0] if isinstance(said, list) else said)["got"]
        (got,) = (Got(**one) for one in said)
        got.assert_remaining_life()
        return got.claims["appid"], got.claims["aud"]


def need(client: Client) -> None:
    """Skip where the client is not there; fail instead where REQUIRE_SYSTEM_TESTS says that it is."""
    if client.missing and os.environ.get("REQUIRE_SYSTEM_TESTS"):
        pytest.fail(f"REQUIRE_SYSTEM_TESTS is set, but {client.missing}", pytrace=False)
    if client.missing:
        pytest.skip(client.missing)


@functools.cache
def libraries() -> Forkserver:
    """Return the server that has imported what the callers import, at once or when they are asked."""
    return Forkserver(
        [
            *("tests.clients.call_azure_identity", "tests.clients.call_msal", "tests.clients.call_opentelemetry"),
            "opentelemetry.resource.detector.azure.vm",
            "azure.monitor.opentelemetry.exporter.statsbeat._statsbeat_metrics",
        ]
    )


def _code(package: str) -> Path:
    return ROOT / ".debian" / package / "usr/lib/python3/dist-packages"


def _token(name: str, caller: str, identity: Identity, order: Mapping[str, Any]) -> Client:
    resource = f"https://{name.replace(' ', '-')}.example"
    return Client(name, caller, {**order, "resources": [resource], "hard": True}, (identity.client_id, resource))


def _azure(name: str, credential: str, identity: Identity, **options: Any) -> Client:
    return _token(name, "call_azure_identity", identity, {"credential": credential, "options": options})


DETECTED = {
    "azure.vm.scaleset.name": COMPUTE["vmScaleSetName"],
    "azure.vm.sku": COMPUTE["sku"],
    "cloud.platform": "azure_vm",
    "cloud.provider": "azure",
    "cloud.region": COMPUTE["location"],
    "cloud.resource_id": COMPUTE["resourceId"],
    "host.id": COMPUTE["vmId"],
    "host.name": COMPUTE["name"],
    "host.type": COMPUTE["vmSize"],
    "os.type": COMPUTE["osType"],
    "os.version": COMPUTE["version"],
    "service.instance.id": COMPUTE["vmId"],
}
AGENTS = (
    *("location", "name", "offer", "osType", "placementGroupId", "platformFaultDomain", "platformUpdateDomain"),
    *("publisher", "resourceGroupName", "sku", "subscriptionId", "tags", "version", "vmId", "vmSize"),
    *("vmScaleSetName", "zone"),
)
"""The fields of `compute` that waagent reads."""
WHOLE = {**at_version(INSTANCE, "2021-08-01"), **extended_part()}
ON_A_VM = {"rp": "vm", "rpId": f"{COMPUTE['vmId']}/{COMPUTE['subscriptionId']}", "os": COMPUTE["osType"]}
UNKNOWN = {"rp": "unknown", "rpId": "unknown", "os": platform.system()}

DETECTOR = Client("detector", "call_opentelemetry", {"client": "detector"}, DETECTED, nothing={})
EXPORTER = Client("exporter", "call_opentelemetry", {"client": "exporter"}, ON_A_VM, nothing=UNKNOWN)
CLOUD_INIT = Client("cloud-init", "call_cloud_init", {"what": "all"}, WHOLE, "cloud-init")
DEFAULT = _azure("default system", "DefaultAzureCredential", SYSTEM_ASSIGNED)
CLIENTS = (
    DETECTOR,
    EXPORTER,
    Client("msal region", "call_msal", {"region": True}, COMPUTE["location"]),
    CLOUD_INIT,
    Client("cloud-init network", "call_cloud_init", {"what": "network"}, INSTANCE["network"], "cloud-init"),
    Client("waagent", "call_waagent", {"what": "compute"}, {name: COMPUTE[name] for name in AGENTS}, "waagent"),
    Client("waagent health", "call_waagent", {"what": "health"}, [True, ""], "waagent"),
    _azure("azure-identity system", "ManagedIdentityCredential", SYSTEM_ASSIGNED),
    _azure("azure-identity client_id", "ManagedIdentityCredential", SECOND, client_id=SECOND.client_id),
    DEFAULT,
    _azure("default client_id", "DefaultAzureCredential", SECOND, managed_identity_client_id=SECOND.client_id),
    _token("msal system", "call_msal", SYSTEM_ASSIGNED, {"identity": {}}),
    _token("msal resource_id", "call_msal", SECOND, {"identity": {"resource_id": SECOND.resource_id}}),
)
