"""`imdsproxy redirect --node`, loaded into a real kernel: pods are redirected, and no client from outside is."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

import pytest

from tests.system.hosts import Host, link
from tests.system.topology import ORDINARY_USER, PROXY_PORT, PROXY_USER, ROUTE_LOCALNET, Azure
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.system

PODS = pytest.mark.parametrize("name", ["routed", "bridged"])
OUTSIDERS = pytest.mark.parametrize(
    ("name", "gateway"), [("routed", "169.254.1.1"), ("bridged", "10.244.0.1"), ("neighbour", "10.0.0.4")]
)

# Three datagrams to this port of the machine, the second under a loopback address.
_FORGE = """
import socket, sys
for number, source in enumerate(("0.0.0.0", "127.0.0.2", "0.0.0.0")):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as it:
        it.bind((source, 0))
        it.sendto(str(number).encode(), ("10.0.0.4", int(sys.argv[1])))
"""


@PODS
def test_pod_reaches_the_cache_with_node(azure: Azure, name: str) -> None:
    pod: Host = getattr(azure, name)
    with azure.running_proxy():
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        azure.redirect("--node")
        first, second = pod.fetch_in_turn(INSTANCE, 2, user=ORDINARY_USER)
        assert (first.status, first.by_proxy, first.hit) == (200, True, False)
        assert (second.status, second.by_proxy, second.hit) == (200, True, True)
        # One cache for the node and its pods.
        assert azure.vm.fetch(INSTANCE, user=ORDINARY_USER).hit
        assert len(azure.arrivals(INSTANCE)) == 1
        assert (azure.counted("prerouting"), azure.counted("guard")) == (2, 0)


@PODS
def test_pod_is_not_redirected_without_node(azure: Azure, name: str) -> None:
    pod: Host = getattr(azure, name)
    with azure.running_proxy():
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        azure.redirect()
        answer = pod.fetch(INSTANCE)
        assert (answer.status, answer.by_proxy) == (200, False)


def test_missing_route_localnet_blocks_pods_and_adds_a_note(azure: Azure) -> None:
    with azure.running_proxy():
        azure.redirect("--node")
        answer = azure.routed.fetch(INSTANCE, timeout=0.5)
        assert (answer.status, answer.error) == (0, "timed out")
        assert azure.arrivals(INSTANCE) == []
        command = (sys.executable, "-m", "imdsproxy", "redirect", "--node", "--uid", str(PROXY_USER))
        assert f"{ROUTE_LOCALNET}=1" in azure.vm.run(*command).stderr
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        assert ROUTE_LOCALNET not in azure.vm.run(*command).stderr
        assert azure.routed.fetch(INSTANCE).by_proxy


def test_neighbours_imds_traffic_is_not_redirected(azure: Azure) -> None:
    with azure.running_proxy():
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        azure.redirect("--node")
        azure.vm.nft(
            "table ip seen { chain forward { type filter hook forward priority 0; ip saddr 10.0.0.5 counter; }; }"
        )
        azure.neighbour.ip("route replace 169.254.169.254 via 10.0.0.4 dev eth0")
        answer = azure.neighbour.fetch(INSTANCE)
        # It came by here, and went on to IMDS.
        assert "packets 0" not in azure.vm.run("nft", "list", "table", "ip", "seen").stdout
        assert azure.counted("prerouting") == 0
        assert (answer.status, answer.by_proxy) == (200, False)


@OUTSIDERS
def test_guard_drops_packets_to_loopback_from_outside(azure: Azure, name: str, gateway: str) -> None:
    intruder: Host = getattr(azure, name)
    loopback = f"http://127.0.0.1:{PROXY_PORT}{INSTANCE}"
    with azure.running_proxy() as proxy:
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        azure.redirect("--node")
        before = proxy.metric("imdsproxy_requests_total")
        with another_loopback(intruder, gateway):
            answer = intruder.fetch(loopback, timeout=0.5)
            assert (answer.status, answer.error) == (0, "timed out")
            assert azure.counted("guard") > 0
            assert proxy.metric("imdsproxy_requests_total") == before
            # It is the guard alone that stands in the way.
            azure.vm.nft("delete chain ip imdsproxy guard")
            assert intruder.fetch(loopback).by_proxy


@OUTSIDERS
def test_guard_drops_packets_from_loopback_addresses_from_outside(azure: Azure, name: str, gateway: str) -> None:
    forger: Host = getattr(azure, name)
    forger.sysctl(ROUTE_LOCALNET, 1)
    azure.vm.sysctl(ROUTE_LOCALNET, 1)
    azure.redirect("--node")
    with azure.vm.inside():
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener:
        listener.settimeout(5)
        listener.bind(("0.0.0.0", 0))
        port = str(listener.getsockname()[1])
        forger.run(sys.executable, "-ISc", _FORGE, port)
        assert [listener.recv(10) for _ in range(2)] == [b"0", b"2"]
        # It is the guard alone that stands in the way.
        azure.vm.nft("delete chain ip imdsproxy guard")
        forger.run(sys.executable, "-ISc", _FORGE, port)
        assert [listener.recv(10) for _ in range(3)] == [b"0", b"1", b"2"]


def test_neighbour_on_another_network_card_is_not_redirected(azure: Azure) -> None:
    with Host("second subnet") as subnet, Host("stranger") as stranger, azure.running_proxy():
        link(subnet, "to-stranger", stranger, "eth0")
        # A network card as the kernel sees one: not one end of a cable between namespaces, as pods have.
        subnet.ip(f"link add link to-stranger name eth1 netns {azure.vm.path} type macvlan mode bridge")
        azure.vm.ip("link set eth1 up", "addr add 10.1.0.4/24 dev eth1")
        stranger.ip("addr add 10.1.0.5/24 dev eth0", "route add default via 10.1.0.4 dev eth0")
        azure.imds.ip("route add 10.1.0.0/24 via 10.0.0.4")
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        azure.redirect("--node")
        answer = stranger.fetch(TOKEN)
        assert (answer.status, answer.by_proxy) == (200, False)


@contextlib.contextmanager
def another_loopback(host: Host, gateway: str) -> Iterator[None]:
    """Make the host send what is for 127.0.0.1 to this gateway, as root in a pod or on a neighbour can."""
    host.sysctl(ROUTE_LOCALNET, 1)
    host.ip("addr del 127.0.0.1/8 dev lo", f"route add 127.0.0.1/32 via {gateway} dev eth0 onlink")
    yield
    host.ip("route del 127.0.0.1/32", "addr add 127.0.0.1/8 dev lo")
