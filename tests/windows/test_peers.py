"""Who asks, on Windows: clients in Windows' own processes, and one outside Wine, of which Windows knows nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.kit import get, wait_until
from tests.targets import INSTANCE, TOKEN
from tests.windows.wine import Windows, windows_path

pytestmark = [pytest.mark.process, pytest.mark.windows]

# Wine names the process of a connected socket once the process has used its descriptor itself, as for sending. Of IPv6
# sockets it names none. Windows itself names both at once.
ASK = """
import socket, sys, threading
def ask(target):
    with socket.socket() as client:
        client.settimeout(60)
        client.connect(("127.0.0.1", int(sys.argv[1])))
        head = f"GET {target} HTTP/1.1\\r\\nHost: localhost\\r\\nMetadata: true\\r\\nConnection: close\\r\\n\\r\\n"
        client.sendall(head.encode())
        answer = b""
        while more := client.recv(65536):
            answer += more
        print(answer.split()[1].decode(), "access-" in answer.decode(), flush=True)
"""
IN_TURN = ASK + "for target in sys.argv[2:]: ask(target)"
AT_ONCE = ASK + "for target in sys.argv[2:]: threading.Thread(target=ask, args=(target,)).start()"
WHO = """
import os, socket, json
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.peers.windows_sockets import sid_of
peers, found = PeerLookup(), []
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    with socket.create_server((host, 0), family=family) as listening, socket.socket(family) as client:
        client.connect(listening.getsockname()[:2])
        client.sendall(b"GET")
        accepted, _ = listening.accept()
        with accepted:
            peer = peers.find(accepted)
            found.append([peer.process == os.getpid(), peer.user, peer.executable, peer.unknown, peer.name])
print(json.dumps({"found": found, "names": [sid_of(os.environ["USERNAME"]), sid_of("no such user")]}))
"""


@pytest.fixture(scope="module")
def me(windows: Windows) -> dict[str, Any]:
    """Return what a process of Windows finds about a client in itself."""
    done = windows.run_python("-c", WHO)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def ask(windows: Windows, port: int, *targets: str) -> list[str]:
    done = windows.run_python("-c", IN_TURN, str(port), *targets)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def rules(folder: Path, *lines: str) -> str:
    file = folder / "access.toml"
    file.write_text("\n".join(['default = "deny"', "[[rule]]", 'name = "own"', *lines, 'allow = "/metadata"']))
    return windows_path(file)


def test_client_has_its_process_program_and_user(me: dict[str, Any]) -> None:
    assert me["names"][0].startswith("S-1-5-")
    assert me["names"][1] is None
    is_own, user, program, unknown, name = me["found"][0]
    assert (is_own, user, unknown) == (True, me["names"][0], None)
    assert program.lower().endswith("\\python.exe")
    assert name.startswith(f"user {user}, process ")


def test_client_whose_process_windows_does_not_name_says_so(me: dict[str, Any]) -> None:
    assert me["found"][1][1:] == [None, None, "Windows names no process that has the client's socket", "::1"]


def test_status_names_clients_by_user_and_process(windows: Windows, imds: EmulatorServer, me: dict[str, Any]) -> None:
    with windows.proxy(upstream=imds.url) as proxy:
        port = proxy.port()
        assert ask(windows, port, INSTANCE) == ["200 False"]
        assert get(port, "/metadata/instance/compute?api-version=2021-02-01").status == 200
        names = [client["name"] for client in json.loads(get(port, "/-/status.json").body)["clients"]]
    user = me["names"][0]
    assert any(name.startswith(f"user {user}, process ") for name in names), names
    assert "127.0.0.1" in names, "of a client outside Wine nothing is known"


def test_rules_by_user_and_program_hold(
    windows: Windows, imds: EmulatorServer, me: dict[str, Any], tmp_path: Path
) -> None:
    user, program = me["found"][0][1:3]
    file = rules(tmp_path, f'user = "{user}"', f"executable = {json.dumps(program.upper())}")
    with windows.proxy(upstream=imds.url, access_file=file) as proxy:
        port = proxy.port()
        assert ask(windows, port, INSTANCE, TOKEN) == ["200 False", "200 False"]
        for target in (INSTANCE, TOKEN):  # both are stored by now
            assert get(port, target).status == 403
    file = rules(tmp_path, f"executable = {json.dumps(program + 'x')}")
    with windows.proxy(upstream=imds.url, access_file=file) as proxy:
        assert ask(windows, proxy.port(), INSTANCE) == ["403 True"]


def test_rule_by_a_users_name_holds(windows: Windows, imds: EmulatorServer, tmp_path: Path) -> None:
    name = windows.run_python("-c", "import os; print(os.environ['USERNAME'])").stdout.strip()
    with windows.proxy(upstream=imds.url, access_file=rules(tmp_path, f'user = "{name}"')) as proxy:
        assert ask(windows, proxy.port(), INSTANCE) == ["200 False"]
    with windows.proxy(upstream=imds.url, access_file=rules(tmp_path, 'user = "S-1-5-18"')) as proxy:
        assert ask(windows, proxy.port(), INSTANCE) == ["403 True"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('group = "Administrators"', "not looked up on Windows"),
        ("user = 0", "users of Windows have no numbers"),
        ('user = "no such user"', 'this machine has no user "no such user"'),
    ],
)
def test_rule_that_cannot_be_compared_stops_the_start(windows: Windows, tmp_path: Path, line: str, reason: str) -> None:
    done = windows.run("serve", port=0, access_file=rules(tmp_path, line))
    assert done.returncode == 2
    assert reason in done.stderr


def test_flood_of_one_process_delays_another_by_one_round(windows: Windows, imds: EmulatorServer) -> None:
    # Wine takes a tenth of a second for each lookup, so the flood is small. It takes seconds to start a client, so the
    # flood lasts for half a minute.
    flood = [f"{INSTANCE}&flood={number}" for number in range(25)]
    with windows.proxy(upstream=imds.url, max_wait=60, budget_requests=1) as proxy:
        proxy.wait_for("readiness ready")
        port = proxy.port()
        with windows.python("-c", AT_ONCE, str(port), *flood) as flooding:
            wait_until(lambda: flooding.text.count("200") >= 2, 60)
            assert ask(windows, port, f"{INSTANCE}&single=1") == ["200 False"]
            before = flooding.text.count("200")
            assert flooding.ended() == 0, flooding.text
    assert flooding.text.count("200") == len(flood)
    assert before < len(flood) - 5, "the single request has waited for the whole flood"
