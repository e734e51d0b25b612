"""`imdsproxy redirect`, loaded into a real kernel: its effect on processes of the machine itself."""

from __future__ import annotations

import json
import socket
import sys
import time

import pytest

from tests.kit import wait_for_log, wait_until
from tests.system.hosts import ROOT_USER, Host
from tests.system.topology import ORDINARY_USER, PROXY_PORT, PROXY_USER, ROUTE_LOCALNET, Azure
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.system

ANOTHER_USER = 9999
BUDGET = 'imdsproxy_budget_available{class="general"}'

_SAY = """
import socket, sys
kind, host, port = sys.argv[1:]
with socket.socket(socket.AF_INET, getattr(socket, kind)) as it:
    it.settimeout(5)
    it.connect((host, int(port)))
    it.send(b"here")
"""


@pytest.mark.parametrize("user", [ROOT_USER, ORDINARY_USER])
def test_client_with_a_hard_coded_address_reaches_the_cache(azure: Azure, user: int) -> None:
    with azure.running_proxy() as proxy:
        azure.redirect()
        first, second = azure.vm.fetch_in_turn(INSTANCE, 2, user=user)
        assert (first.status, first.by_proxy, first.hit) == (200, True, False)
        assert (second.status, second.by_proxy, second.hit) == (200, True, True)
        assert second.body == first.body
        assert len(azure.arrivals(INSTANCE)) == 1
        # The clients' two connections and none of the proxy's own.
        assert azure.counted("output") == 2
        assert "loop" not in proxy.log


def test_proxys_own_user_reaches_imds_itself(azure: Azure) -> None:
    azure.redirect()
    answer = azure.vm.fetch(TOKEN, user=PROXY_USER)
    assert (answer.status, answer.by_proxy) == (200, False)
    assert azure.counted("output") == 0


def test_proxys_user_may_be_given_by_name(azure: Azure) -> None:
    azure.redirect(user="nobody")
    nobody = int(azure.vm.run("id", "-u", "nobody").stdout)
    assert azure.vm.fetch(INSTANCE, user=nobody).status == 200
    assert "refused" in azure.vm.fetch(INSTANCE, user=PROXY_USER).error


def test_redirect_uses_the_port_of_the_settings(azure: Azure) -> None:
    with azure.running_proxy(port=9254), azure.running_proxy(port=PROXY_PORT) as other:
        azure.redirect("--port", "9254")
        before = other.metric("imdsproxy_requests_total")
        assert azure.vm.fetch(INSTANCE).by_proxy
        assert other.metric("imdsproxy_requests_total") == before


@pytest.mark.parametrize("flags", [(), ("--node",)])
def test_loading_twice_equals_loading_once(azure: Azure, flags: tuple[str, ...]) -> None:
    azure.redirect(*flags)
    once = loaded(azure.vm)
    azure.redirect(*flags)
    assert loaded(azure.vm) == once != ""
    # Whatever was loaded before.
    azure.redirect("--port", "9999", "--node", user=ANOTHER_USER)
    assert loaded(azure.vm) != once
    azure.redirect(*flags)
    assert loaded(azure.vm) == once


def test_removal_deletes_only_its_own_table(azure: Azure) -> None:
    azure.vm.nft("table ip other { chain output { tcp dport 81 accept; }; }")
    azure.vm.nft("table inet imdsproxy { chain output { tcp dport 82 accept; }; }")
    azure.vm.nft("table ip6 imdsproxy { set ports { type inet_service; }; }")
    before = loaded(azure.vm)
    azure.redirect("--node")
    assert loaded(azure.vm) != before
    removal = azure.ruleset("--remove")
    azure.vm.nft(removal)
    assert loaded(azure.vm) == before
    azure.vm.nft(removal)
    assert loaded(azure.vm) == before


@pytest.mark.parametrize("flags", [(), ("--exclusive",), ("--node", "--root", "--port", "9999")])
def test_load_equals_loading_the_printed_ruleset(azure: Azure, flags: tuple[str, ...]) -> None:
    azure.redirect(*flags)
    by_nft = loaded(azure.vm)
    azure.vm.nft("flush ruleset")
    command = (sys.executable, "-m", "imdsproxy", "redirect", "--load")
    for _ in range(2):
        said = azure.vm.run(*command, "--uid", str(PROXY_USER), *flags)
        assert (loaded(azure.vm), said.stdout) == (by_nft, "")
        assert f"except those of user {PROXY_USER}\n" in said.stderr
    said = azure.vm.run(*command, "--remove")
    assert (loaded(azure.vm), said.stdout) == ("", "")
    assert said.stderr.startswith("imdsproxy: calls of 169.254.169.254:80 go to IMDS itself again\n")


def test_client_reaches_the_cache_after_load(azure: Azure) -> None:
    with azure.running_proxy():
        azure.vm.run(sys.executable, "-m", "imdsproxy", "redirect", "--load", "--uid", str(PROXY_USER), "--exclusive")
        assert azure.vm.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
        azure.vm.run(sys.executable, "-m", "imdsproxy", "redirect", "--load", "--remove")
        assert not azure.vm.fetch(INSTANCE, user=ORDINARY_USER).by_proxy


@pytest.mark.parametrize(
    ("user", "flags", "told"),
    [
        (ORDINARY_USER, ("--uid", "1"), "changing nftables needs root or CAP_NET_ADMIN"),
        (ORDINARY_USER, ("--remove",), "changing nftables needs root or CAP_NET_ADMIN"),
        (ROOT_USER, ("--uid", "no-such-user"), "nft does not accept the ruleset: User does not exist"),
    ],
)
def test_failed_load_changes_nothing(azure: Azure, user: int, flags: tuple[str, ...], told: str) -> None:
    azure.redirect()
    before = loaded(azure.vm)
    said = azure.vm.run(sys.executable, "-m", "imdsproxy", "redirect", "--load", *flags, user=user, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (2, "", f"imdsproxy: {told}\n")
    assert loaded(azure.vm) == before


def test_clients_reach_imds_itself_after_removal(azure: Azure) -> None:
    with azure.running_proxy():
        azure.redirect()
        assert azure.vm.fetch(INSTANCE).by_proxy
        azure.vm.nft(azure.ruleset("--remove"))
        answer = azure.vm.fetch(INSTANCE)
        assert (answer.status, answer.by_proxy) == (200, False)
        assert len(azure.arrivals(INSTANCE)) == 2


def test_port_80_of_another_address_is_not_redirected(azure: Azure) -> None:
    azure.imds.ip("addr add 169.254.169.253/32 dev lo")
    with azure.running_proxy():
        azure.redirect()
        for address in ("10.0.0.1", "169.254.169.253"):
            answer = azure.vm.fetch(f"http://{address}{INSTANCE}")
            assert (answer.status, answer.by_proxy) == (200, False)


@pytest.mark.parametrize(("kind", "port"), [(socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, 80)])
def test_other_port_or_protocol_of_imds_is_not_redirected(azure: Azure, kind: socket.SocketKind, port: int) -> None:
    azure.redirect()
    with azure.imds.inside():
        listener = socket.socket(socket.AF_INET, kind)
    with listener:
        listener.settimeout(5)
        listener.bind(("169.254.169.254", port))
        if kind == socket.SOCK_STREAM:
            listener.listen()
        azure.vm.run(sys.executable, "-ISc", _SAY, kind.name, "169.254.169.254", str(port))
        if kind == socket.SOCK_STREAM:
            with listener.accept()[0] as connection:
                assert connection.recv(100) == b"here"
        else:
            assert listener.recv(100) == b"here"


def test_clients_are_refused_while_the_proxy_is_stopped(azure: Azure) -> None:
    azure.redirect("--node", "--root")
    azure.vm.sysctl(ROUTE_LOCALNET, 1)
    for _ in range(2):
        with azure.running_proxy():
            assert azure.vm.fetch(INSTANCE).status == 200
        came = len(azure.arrivals())
        for host in (azure.vm, azure.routed, azure.bridged):
            answer = host.fetch(INSTANCE)
            assert (answer.status, answer.seconds < 2) == (0, True), answer
            assert "refused" in answer.error
        assert len(azure.arrivals()) == came


@pytest.mark.attack(12)
def test_missing_exemption_is_reported_at_once_and_takes_no_permit(azure: Azure) -> None:
    rule = f"meta skuid != {PROXY_USER}"
    with azure.running_proxy() as proxy:
        # The token of the proxy's own first question has to come back.
        wait_until(lambda: proxy.metric(BUDGET) == 5)
        azure.redirect(user=ANOTHER_USER)
        answer = azure.vm.fetch(INSTANCE)
        assert (answer.status, json.loads(answer.body)["error"]) == (508, "loop_detected")
        assert answer.seconds < 2
        assert azure.counted("output") <= 2
        assert proxy.metric(BUDGET) == 5

        answers = azure.vm.fetch_in_turn(INSTANCE, 50)
        assert {answer.status for answer in answers} == {508}
        assert max(answer.seconds for answer in answers) < 2
        assert proxy.metric(BUDGET) == 5
        met = azure.counted("output")
        assert met <= 2 * 51
        assert wait_for_log(proxy, rule) == 1
        assert azure.arrivals(INSTANCE) == []

        time.sleep(1.5)
        # Nothing goes on by itself.
        assert azure.counted("output") == met

        azure.redirect()
        answer = azure.vm.fetch(INSTANCE)
        assert (answer.status, answer.by_proxy) == (200, True)


def test_proxy_started_in_a_loop_becomes_ready_once_exempt(azure: Azure) -> None:
    azure.redirect(user=ANOTHER_USER)
    with azure.running_proxy(page="/-/healthy") as proxy:
        wait_for_log(proxy, f"meta skuid != {PROXY_USER}")
        assert proxy.get("/-/ready").status == 503
        assert azure.arrivals() == []
        azure.redirect()
        wait_until(lambda: proxy.answers("/-/ready"), 20)
        assert azure.vm.fetch(INSTANCE).by_proxy


def loaded(host: Host) -> str:
    """Return the host's whole ruleset, without the values of its counters."""
    return host.run("nft", "--stateless", "list", "ruleset").stdout
