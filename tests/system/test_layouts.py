"""A node of Kubernetes in namespaces: each layout's way from an unmodified client in a pod to IMDS.

The data planes are veth, routed and bridged. What Cilium does with a local redirect policy is stood in for by address
translation at the pods' interfaces: it shows the way of the packets and of the answers, and nothing about Cilium.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forkserver import of_checks
from tests.kit import wait_until
from tests.system.azure_identity import token_by_azure_identity
from tests.system.hosts import Host, link
from tests.system.topology import ORDINARY_USER, PROXY_USER, ROUTE_LOCALNET, Azure, running_azure
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.system

PODS = pytest.mark.parametrize("name", ["routed", "bridged"])
# The rule of AKS's IMDS restriction, in either of the tables that it is put into; 10.0.0.4 is the node.
RESTRICTIONS = pytest.mark.parametrize(("table", "priority"), [("mangle", -150), ("filter", 0)])
LABEL = "kubernetes.azure.com/ebpf-host-routing=true"
NO_PORT = 9999
# What CiliumLocalRedirectPolicy is for: a pod's calls go to the daemon of its node, and the daemon's own do not.
_TO_DAEMON = """
table ip local_redirect {
    chain prerouting {
        type nat hook prerouting priority -100
        iifname { "azv1", "cbr0" } ip daddr 169.254.169.254 tcp dport 80 dnat to 10.0.0.60:8254
    }
}
"""
_BY_SOCKET = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    connection.sendall(f"GET {sys.argv[2]} HTTP/1.0\\r\\nHost: imds\\r\\nMetadata: true\\r\\n\\r\\n".encode())
    print(connection.recv(65536).decode())
"""


@dataclass(frozen=True)
class Node:
    """The hosts, with a proxy in vm at 127.0.0.1:8254 and at a Unix socket."""

    azure: Azure
    socket: Path

    def load(self, *flags: str) -> tuple[int, str]:
        """Load a redirect by the command; return its status, and what it said."""
        arguments = ("redirect", "--load", "--uid", str(PROXY_USER), *flags)
        done = self.azure.vm.run_module(
            "imdsproxy.__main__", *arguments, imported_by=of_checks, env=dict(os.environ), timeout=60
        )
        return done.returncode, done.stderr

    def clear(self) -> None:
        """Remove every rule, those of the test as well."""
        self.azure.vm.run("nft", "flush", "ruleset")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("layouts")
    folder.chmod(0o777)
    path = folder / "p.sock"
    with running_azure(folder) as azure, azure.running_proxy(uds=path):
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        yield Node(azure, path)


@pytest.fixture
def node(running: Node) -> Iterator[Node]:
    yield running
    running.clear()


@PODS
def test_redirect_on_the_node_serves_an_unmodified_client(node: Node, name: str) -> None:
    pod: Host = getattr(node.azure, name)
    assert node.load("--node")[0] == 0
    resource = "https://redirected.example"
    assert token_by_azure_identity(pod, resource).claims["aud"] == resource
    # One token for all pods.
    arrivals = [each for each in node.azure.arrivals("/metadata/identity") if "redirected" in each.target]
    assert len(arrivals) == 1


@PODS
def test_socket_serves_a_pod_that_has_it_mounted(node: Node, name: str) -> None:
    pod: Host = getattr(node.azure, name)
    done = pod.run(sys.executable, "-ISc", _BY_SOCKET, str(node.socket), INSTANCE)
    assert done.stdout.startswith("HTTP/1.1 200 ")
    assert "cache-status: imdsproxy" in done.stdout


def test_sidecar_with_a_redirect_serves_its_own_pod_only(node: Node, tmp_path: Path) -> None:
    pod, log = node.azure.routed, tmp_path / "sidecar.log"
    with pod.start_module("imdsproxy", user=PROXY_USER, env={"IMDSPROXY_PORT": "8254"}, log=log):
        wait_until(lambda: pod.fetch("http://127.0.0.1:8254/-/ready").status == 200)
        pod.nft(node.azure.ruleset("--uid", str(PROXY_USER)))
        try:
            resource = "https://sidecar.example"
            assert token_by_azure_identity(pod, resource).claims["aud"] == resource
            assert pod.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
            assert not node.azure.bridged.fetch(INSTANCE).by_proxy
            assert not node.azure.vm.fetch(INSTANCE).by_proxy
        finally:
            pod.run("nft", "flush", "ruleset")


@contextlib.contextmanager
def daemon(azure: Azure, folder: Path) -> Iterator[Host]:
    """Run a proxy in a pod of its own, 10.0.0.60, without the node's network."""
    with Host("daemon") as pod:
        link(azure.vm, "azv2", pod, "eth0")
        azure.vm.sysctl("net.ipv4.conf.azv2.proxy_arp", 1)
        azure.vm.sysctl("net.ipv4.neigh.azv2.proxy_delay", 0)
        azure.vm.ip("route add 10.0.0.60/32 dev azv2")
        azure.imds.ip("route replace 10.0.0.60 via 10.0.0.4")
        pod.ip(
            "addr add 10.0.0.60/32 dev eth0",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1 dev eth0 onlink",
        )
        settings = {"IMDSPROXY_HOST": "10.0.0.60", "IMDSPROXY_CLIENTS": "10.0.0.50,10.244.0.0/24"}
        with pod.start_module("imdsproxy", user=PROXY_USER, env=settings, log=folder / "daemon.log"):
            wait_until(lambda: pod.fetch("http://10.0.0.60:8254/-/ready").status == 200)
            yield pod


def test_translation_at_the_pods_interfaces_leads_to_the_daemon_of_the_node(node: Node, tmp_path: Path) -> None:
    with daemon(node.azure, tmp_path) as pod:
        node.azure.vm.nft(_TO_DAEMON)
        for number, client in enumerate((node.azure.routed, node.azure.bridged)):
            resource = f"https://policy{number}.example"
            assert token_by_azure_identity(client, resource).claims["aud"] == resource
            assert client.fetch(INSTANCE).by_proxy
        # The daemon's own calls, and the node's, go to IMDS itself.
        assert not pod.fetch(INSTANCE).by_proxy
        assert not node.azure.vm.fetch(INSTANCE).by_proxy
        # A pod's address is reached from other nodes; CLIENTS keeps them out.
        node.azure.neighbour.ip("route replace 10.0.0.60 via 10.0.0.4 dev eth0")
        answer = node.azure.neighbour.fetch(f"http://10.0.0.60:8254{TOKEN}")
        assert (answer.status, answer.headers["cache-status"]) == (403, "imdsproxy; detail=client")


@RESTRICTIONS
def test_aks_restriction_is_named_and_respected_on_demand(node: Node, table: str, priority: int) -> None:
    vm, pods = node.azure.vm, (node.azure.routed, node.azure.bridged)
    vm.nft(
        f"table ip {table} {{ chain FORWARD {{ type filter hook forward priority {priority}; "
        "ip saddr != 10.0.0.4 ip daddr 169.254.169.254 tcp dport 80 counter drop; }; }"
    )
    assert [pod.fetch(INSTANCE, timeout=0.3).status for pod in pods] == [0, 0]

    status, said = node.load("--node")
    assert status == 0
    assert f"AKS's IMDS restriction does (drop in table ip {table}, chain FORWARD)" in said
    assert "--respect-restriction leaves pods out" in said
    assert [pod.fetch(INSTANCE).by_proxy for pod in pods] == [True, True]

    status, said = node.load("--node", "--respect-restriction")
    assert status == 0
    assert "they stay in force, and pods are not redirected" in said
    assert [pod.fetch(INSTANCE, timeout=0.3).status for pod in pods] == [0, 0]
    assert vm.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
    assert not vm.fetch(INSTANCE).by_proxy, "the kubelet, which is root's, calls IMDS itself"


def test_restriction_is_respected_where_there_is_none(node: Node) -> None:
    assert node.load("--node", "--respect-restriction")[0] == 0
    assert node.azure.routed.fetch(INSTANCE).by_proxy


def test_kubelet_reaches_imds_while_the_proxy_is_away(node: Node) -> None:
    # Nothing listens at this port, as before the proxy's pod has started. The kubelet's user is root.
    vm = node.azure.vm
    status, said = node.load("--node", "--port", str(NO_PORT))
    assert status == 0
    assert f"except those of user {PROXY_USER} and of root's programs" in said
    answer = vm.fetch(TOKEN)
    assert (answer.status, answer.by_proxy) == (200, False)
    # Others are refused rather than led around the proxy.
    assert vm.fetch(INSTANCE, user=ORDINARY_USER).status == 0
    assert node.azure.routed.fetch(INSTANCE).status == 0

    assert node.load("--node", "--root", "--port", str(NO_PORT))[0] == 0
    assert vm.fetch(TOKEN).status == 0


def test_redirect_is_not_loaded_where_packets_of_pods_bypass_it(node: Node) -> None:
    status, said = node.load("--node", "--node-label", f"agentpool=a,{LABEL}")
    assert status == 2
    assert f"this node has eBPF host routing (the label {LABEL})" in said
    assert "imdsproxy address" in said
    assert node.azure.vm.run("nft", "list", "ruleset").stdout == ""
    # The node's own programs are redirected as everywhere.
    assert node.load("--node-label", LABEL)[0] == 0
    status, said = node.load("--node", "--node-label", LABEL, "--force")
    assert status == 0
    assert "loaded by --force" in said
    assert node.azure.counted("prerouting") == 0
