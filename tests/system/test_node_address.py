"""A link-local address of a node, in a real kernel: its own pods reach the proxy there, and no other machine does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forkserver import of_checks
from tests.kit import wait_until
from tests.system.azure_identity import token_by_azure_identity
from tests.system.hosts import Host
from tests.system.topology import ORDINARY_USER, PROXY_USER, Azure, running_azure
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.system

ADDRESS = "169.254.20.10"
URL = f"http://{ADDRESS}"
GUARDED = f"{URL}:81"
PODS = pytest.mark.parametrize("name", ["routed", "bridged"])


@dataclass
class Node:
    """The hosts, with a proxy for all pods at port 80 and one with CLIENTS at port 81 of the address."""

    azure: Azure
    log: Path
    address_log: Path


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    with running_azure(folder) as azure, contextlib.ExitStack() as stack:
        azure.vm.sysctl("net.ipv4.ip_unprivileged_port_start", 80)
        log, address_log = folder / "proxy.log", folder / "address.log"
        settings = {"IMDSPROXY_HOST": ADDRESS, "IMDSPROXY_PORT": "80"}
        guarded = {**settings, "IMDSPROXY_PORT": "81", "IMDSPROXY_CLIENTS": "10.244.0.0/24"}
        # The proxies begin before there is such an address.
        stack.enter_context(azure.vm.start_module("imdsproxy", user=PROXY_USER, env=settings, log=log))
        wait_until(lambda: "listening" in log.read_text(encoding="utf-8"))
        stack.enter_context(
            azure.vm.start_module("imdsproxy", user=PROXY_USER, env=guarded, log=folder / "guarded.log")
        )
        stack.enter_context(azure.vm.start_module("imdsproxy", "address", log=address_log))
        for url in (URL, GUARDED):
            wait_until(lambda url=url: azure.vm.fetch(f"{url}/-/ready").status == 200)
        yield Node(azure, log, address_log)


@PODS
def test_pod_reaches_the_proxy_at_the_nodes_address(node: Node, name: str) -> None:
    pod: Host = getattr(node.azure, name)
    before = len(node.azure.arrivals(INSTANCE))
    answers = pod.fetch_in_turn(URL + INSTANCE, 2, user=ORDINARY_USER)
    assert [(answer.status, answer.by_proxy) for answer in answers] == [(200, True)] * 2
    assert answers[1].hit
    # The node's own programs, too, and all from one cache.
    assert node.azure.vm.fetch(URL + INSTANCE).hit
    assert len(node.azure.arrivals(INSTANCE)) - before <= 1
    # Without a token in the pod's hands that did not say Metadata: true.
    assert pod.fetch(URL + TOKEN, headers={}).status == 400


@PODS
def test_azure_identity_is_told_the_nodes_address(node: Node, name: str) -> None:
    pod: Host = getattr(node.azure, name)
    got = token_by_azure_identity(pod, "https://vault.azure.net", URL)
    assert got.claims["aud"] == "https://vault.azure.net"
    # One token for both pods, and for all libraries.
    assert len(node.azure.arrivals("/metadata/identity/oauth2/token")) == 1


@pytest.mark.parametrize("route", ["via 10.0.0.4 dev eth0", "dev eth0"], ids=["by the node", "by ARP"])
def test_neighbour_gets_no_answer_but_403_from_the_nodes_address(node: Node, route: str) -> None:
    node.azure.neighbour.ip(f"route replace {ADDRESS}/32 {route}")
    for target in (INSTANCE, TOKEN, "/-/metrics"):
        # Linux itself takes the connection, as from a pod.
        answer = node.azure.neighbour.fetch(URL + target)
        assert (answer.status, answer.headers["cache-status"]) == (403, "imdsproxy; detail=client")
        assert "another machine" in answer.body.decode()
    wait_until(lambda: "client refused client=10.0.0.5" in node.log.read_text(encoding="utf-8"))


def test_neighbour_that_pretends_to_be_a_pod_gets_no_connection(node: Node) -> None:
    neighbour = node.azure.neighbour
    neighbour.ip(f"route replace {ADDRESS}/32 via 10.0.0.4 dev eth0 src 10.0.0.5", "addr add 10.244.0.2/32 dev lo")
    neighbour.ip(f"route replace {ADDRESS}/32 via 10.0.0.4 dev eth0 src 10.244.0.2")
    answer = neighbour.fetch(GUARDED + TOKEN, timeout=0.5)
    assert (answer.status, answer.error) == (0, "timed out")
    neighbour.ip("addr del 10.244.0.2/32 dev lo")


def test_clients_setting_admits_the_pods_of_its_ranges_only(node: Node) -> None:
    assert node.azure.bridged.fetch(GUARDED + INSTANCE).status == 200
    assert node.azure.vm.fetch(GUARDED + INSTANCE).hit
    for target in (INSTANCE, "/metadata/versions", TOKEN, "/-/metrics"):
        answer = node.azure.routed.fetch(GUARDED + target)
        assert (answer.status, answer.headers["cache-status"]) == (403, "imdsproxy; detail=client")
    text = node.azure.vm.fetch(GUARDED + "/-/metrics").body.decode()
    assert re.search(r'imdsproxy_responses_total\{reason="client",status_class="4xx"\} 4\.0', text)


def test_proxy_that_began_before_the_address_says_so(node: Node) -> None:
    log = node.log.read_text(encoding="utf-8")
    assert "no interface has the address of a listener yet" in log
    assert f"listener for this machine and its pods address={ADDRESS} closed_to=eth0" in log
    # Every client of this machine is served, and no other machine can be.
    assert "other machines may reach this address" not in log


def test_address_lives_as_long_as_its_command(tmp_path: Path) -> None:
    with Host("machine") as machine:
        log = tmp_path / "address.log"

        def said(words: str) -> bool:
            return words in log.read_text(encoding="utf-8")

        def addresses() -> list[str]:
            listed = json.loads(machine.run("ip", "-json", "-4", "addr", "show").stdout)
            return [each["local"] for link in listed for each in link["addr_info"] if link["ifname"] != "lo"]

        with machine.start_module("imdsproxy", "address", log=log) as killed:
            wait_until(lambda: said("has the address"))
            killed.send_signal(signal.SIGKILL)
            killed.wait(15)
        assert addresses() == [ADDRESS]
        # What was left is used, or replaced where it is another.
        with machine.start_module("imdsproxy", "address", log=log) as holding:
            wait_until(lambda: said("still has, from an earlier run,"))
            machine.ip("link delete imdsproxy0")
            wait_until(lambda: said("it is back"))
            assert addresses() == [ADDRESS]
            holding.send_signal(signal.SIGKILL)
            holding.wait(15)
        with machine.start_module("imdsproxy", "address", "--address=169.254.20.20", log=log) as holding:
            wait_until(lambda: said("has the address 169.254.20.20"))
            assert addresses() == ["169.254.20.20"]
            holding.terminate()
            assert holding.wait(15) == 0
        assert said("the interface imdsproxy0 and its address are removed")
        assert addresses() == []


def test_address_touches_nothing_that_it_has_not_made(tmp_path: Path) -> None:
    del tmp_path
    with Host("machine") as machine:

        def run(*flags: str) -> tuple[int, str]:
            done = machine.run_module(
                "imdsproxy.__main__", "address", *flags, imported_by=of_checks, env=dict(os.environ), timeout=30
            )
            return done.returncode, done.stderr

        machine.ip("link add name imdsproxy0 type bridge", "addr add 10.9.0.1/24 dev imdsproxy0")
        for flags in ((), ("--remove",)):
            status, words = run(*flags)
            assert (status, "this command has not made it" in words) == (2, True)
        machine.ip("link delete imdsproxy0", f"addr add {ADDRESS}/32 dev lo")
        status, words = run()
        assert status == 2
        assert f"{ADDRESS} is an address of this machine already, on the interface lo" in words
        # A run that was killed between making and marking the interface.
        machine.ip(f"addr del {ADDRESS}/32 dev lo", "link add name imdsproxy0 type bridge")
        assert run("--remove") == (0, "imdsproxy: the interface imdsproxy0 and its address are removed\n")
        assert run("--remove") == (0, "imdsproxy: there is no interface imdsproxy0\n")


def test_printed_commands_make_what_the_command_makes() -> None:
    with Host("machine") as machine:
        printed = machine.run(sys.executable, "-m", "imdsproxy", "address", "--print").stdout
        # This kernel may have no dummies; any kind holds the address.
        machine.run("sh", "-ec", printed.replace("type dummy", "type bridge"))
        listed = json.loads(machine.run("ip", "-json", "-4", "addr", "show", "imdsproxy0").stdout)[0]
        assert [(each["local"], each["prefixlen"], each["scope"]) for each in listed["addr_info"]] == [
            (ADDRESS, 32, "host")
        ]
        done = machine.run(sys.executable, "-m", "imdsproxy", "address", "--remove")
        assert "are removed" in done.stderr


def test_low_port_without_the_capability_is_refused_with_its_name() -> None:
    with Host("machine") as machine:
        env = {**os.environ, "IMDSPROXY_PORT": "80", "IMDSPROXY_UPSTREAM": "http://127.0.0.1:9"}
        done = machine.run_module("imdsproxy.__main__", imported_by=of_checks, env=env, user=PROXY_USER, timeout=30)
        assert done.returncode == 2
        assert "a port below 1024 needs CAP_NET_BIND_SERVICE" in done.stderr
