"""Which interfaces lead to other machines, and by which one a connection came."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("only Linux tells by which interface a connection came", allow_module_level=True)

from imdsproxy.cli.check.facts import Place
from imdsproxy.cli.check.probes.places import look_at_places
from imdsproxy.config import Config
from imdsproxy.errors import StartError
from imdsproxy.server import node_listener
from imdsproxy.server.inherited_sockets import InheritedSocket
from imdsproxy.server.listeners import open_listeners
from imdsproxy.server.node_listener import Gate, interface_of, outside_interfaces

NOBODYS = "169.254.77.77"
ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0100000A	0003	0	0	0	00000000	0	0	0
eth0	0000000A	00000000	0001	0	0	0	00FFFFFF	0	0	0
cbr0	0000F40A	00000000	0001	0	0	0	00FFFFFF	0	0	0
wide0	00000000	00000000	0001	0	0	0	00000080	0	0	0
short
"""
INTERFACES = [(1, "lo"), (2, "eth0"), (3, "eth1"), (4, "cbr0"), (5, "azv1"), (6, "wide0")]


def test_cards_and_default_routes_lead_to_other_machines() -> None:
    assert outside_interfaces(ROUTES, INTERFACES, lambda name: name == "eth1") == {2: "eth0", 3: "eth1"}
    assert outside_interfaces("", INTERFACES, lambda _: False) == {}


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ("1c00000000000000000000000800000003000000a9fe140aa9fe140a", 3),
        ("1c00000000000000000000000800000003000000a9fe140a", None),  # cut
        ("1c00000000000000000000000900000003000000a9fe140aa9fe140a", None),  # another message
        ("", None),
    ],
)
def test_interface_is_read_from_the_control_message(options: str, number: int | None) -> None:
    assert interface_of(bytes.fromhex(options)) == number


def test_gate_judges_by_the_interface_and_reads_the_list_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = socket.if_nametoindex("lo")
    lists = [{}, {loopback: "lo"}]
    monkeypatch.setattr(node_listener, "_outside_now", lambda: lists.pop(0))
    now = [0.0]
    gate = Gate(lambda: now[0])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.IPPROTO_IP, node_listener._IP_PKTINFO, 1)
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert not gate.is_outside(accepted)
                now[0] = 9.9
                assert not gate.is_outside(accepted)
                now[0] = 10.0
                assert gate.is_outside(accepted)
            # What has ended is not served.
            assert gate.is_outside(accepted)


def test_gate_is_closed_until_the_interfaces_could_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lists: list[dict[int, str]] = []

    def read() -> dict[int, str]:
        if not lists:
            raise PermissionError
        return lists.pop()

    monkeypatch.setattr(node_listener, "_outside_now", read)
    now = [0.0]
    gate = Gate(lambda: now[0])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.IPPROTO_IP, node_listener._IP_PKTINFO, 1)
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert gate.is_outside(accepted)
            lists.append({})
            now[0] = 10.0
            assert not gate.is_outside(accepted)
            # It fails once more, and what was read before counts.
            now[0] = 20.0
            assert not gate.is_outside(accepted)


def test_connection_that_came_before_its_listener_was_prepared_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [{}, {socket.if_nametoindex("lo"): "lo"}]
    monkeypatch.setattr(node_listener, "_outside_now", lambda: lists.pop(0))
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert not Gate().is_outside(accepted)
        assert Gate().is_outside(accepted)


def test_socket_of_a_service_manager_at_a_link_local_address_has_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        inherited = []
        for host, named in ((NOBODYS, "imdsproxy"), ("127.0.0.1", "other"), (NOBODYS, "admin")):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.IPPROTO_IP, node_listener._IP_FREEBIND, 1)
            one.bind((host, 0))
            one.listen()
            inherited.append(InheritedSocket(one, named == "admin"))
        monkeypatch.setattr("imdsproxy.server.listeners.inherited_sockets", lambda _environ: inherited)
        found = open_listeners(Config(), {})
    assert [(one.gate is not None, one.reaches_out) for one in found] == [(True, False), (False, False), (True, False)]


def test_link_local_address_is_listened_on_before_it_exists(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    main, admin = open_listeners(Config(host=NOBODYS, port=0, admin_port=0), {})
    with contextlib.closing(main), contextlib.closing(admin):
        assert main.gate is not None
        assert not main.reaches_out
        assert main.url.startswith(f"http://{NOBODYS}:")
    words = [record.message for record in caplog.records]
    assert words.count("listener for this machine and its pods") == 2
    assert words.count("no interface has the address of a listener yet; it is reached once one has") == 2


def test_other_address_must_exist() -> None:
    (listener,) = open_listeners(Config(port=0), {})
    with contextlib.closing(listener):
        assert listener.gate is None
    with pytest.raises(StartError, match="is not an address of this machine"):
        open_listeners(Config(host="192.0.2.1", port=0), {})


def test_check_says_that_no_interface_has_the_address() -> None:
    listeners = look_at_places(Config(host=NOBODYS), lambda _: False, [], {}, lambda _: ())
    assert [(each.setting, each.place) for each in listeners] == [("PORT", Place.ABSENT)]
