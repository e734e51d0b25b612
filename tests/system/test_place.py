"""Only the proxy's user and root can answer at the redirected address."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import pytest

from tests.kit import wait_until
from tests.system.hosts import ROOT_USER
from tests.system.topology import ORDINARY_USER, PROXY_PORT, PROXY_USER, ROUTE_LOCALNET, Azure
from tests.targets import INSTANCE

pytestmark = pytest.mark.system

_SERVE = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("listening", file=sys.stderr, flush=True)
while True:
    with listener.accept()[0] as client:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 6\\r\\nConnection: close\\r\\n\\r\\nforged")
"""


@contextlib.contextmanager
def serving_in_its_place(azure: Azure, user: int) -> Iterator[None]:
    """Listen as this user at the proxy's port, at every address of vm."""
    log = azure.folder / f"in-its-place-{user}.log"
    with azure.vm.start(sys.executable, "-ISc", _SERVE, str(PROXY_PORT), user=user, log=log):
        wait_until(lambda: "listening" in log.read_text(encoding="utf-8"))
        yield


def test_no_other_user_can_answer_while_the_proxy_is_stopped(azure: Azure) -> None:
    azure.vm.sysctl(ROUTE_LOCALNET, 1)
    azure.redirect("--node", "--root", "--exclusive")
    with serving_in_its_place(azure, ORDINARY_USER):
        for number, client in enumerate((azure.vm, azure.routed, azure.bridged), start=1):
            answer = client.fetch(INSTANCE, timeout=0.5)
            assert (answer.status, answer.error) == (0, "timed out")
            assert azure.counted("answer") >= number
        # It is that chain alone that stands in the way.
        azure.vm.nft("delete chain ip imdsproxy answer")
        assert azure.vm.fetch(INSTANCE).body == b"forged"


@pytest.mark.parametrize("user", [PROXY_USER, ROOT_USER])
def test_own_user_and_root_can_answer_with_socket_activation(azure: Azure, user: int) -> None:
    azure.redirect("--exclusive")
    with serving_in_its_place(azure, user):
        assert azure.vm.fetch(INSTANCE).body == b"forged"
    assert azure.counted("answer") == 0


@pytest.mark.parametrize("ours_last", [True, False])
def test_other_translation_of_the_same_address_does_not_come_first(azure: Azure, ours_last: bool) -> None:
    azure.vm.sysctl(ROUTE_LOCALNET, 1)
    if not ours_last:
        azure.redirect("--node", "--root")
    azure.vm.nft("""
        table ip other {
            chain output {
                type nat hook output priority -100
                ip daddr 169.254.169.254 tcp dport 80 dnat to 127.0.0.1:9999
            }
            chain prerouting {
                type nat hook prerouting priority -100
                ip daddr 169.254.169.254 tcp dport 80 dnat to 127.0.0.1:9999
            }
        }
    """)
    if ours_last:
        azure.redirect("--node", "--root")
    with azure.running_proxy(page="/-/healthy"):
        # The proxy's own calls are translated by the other, which is the other's business: it gets no answer.
        for client in (azure.vm, azure.routed, azure.bridged):
            assert client.fetch(INSTANCE).by_proxy
