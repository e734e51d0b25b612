"""Who asks: users of one machine take turns, over the redirect, over loopback and over the Unix socket."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import wait_for_log, wait_until
from tests.system.topology import ORDINARY_USER, PROXY_PORT, PROXY_USER, ROUTE_LOCALNET, Azure, HostedProxy
from tests.targets import INSTANCE

pytestmark = pytest.mark.system

ANOTHER_USER = 9999
FLOOD = 1000
LEAF = "/metadata/instance/compute/tagsList/{}?api-version=2021-02-01"
LONE = "/metadata/instance/compute/tagsList/alone?api-version=2021-02-01"
TWO_ROUNDS = 11
"""The budget's permits in two windows, and the request itself."""

# One process with as many connections as requests. Every second request carries a name of a proxy of its own.
_FLOOD = f"""
import resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
where, count, prefix = sys.argv[1], int(sys.argv[2]), sys.argv[3]
open_ones = []
for number in range(count):
    if where.startswith("/"):
        one = socket.socket(socket.AF_UNIX)
        one.connect(where)
    else:
        host, port = where.split()
        one = socket.create_connection((host, int(port)))
    fields = "Host: 127.0.0.1\\r\\nMetadata: true\\r\\n"
    if number % 2:
        fields += "Imdsproxy-Via: %016x\\r\\n" % number
    target = {LEAF!r}.format(prefix + str(number))
    one.sendall(("GET " + target + " HTTP/1.1\\r\\n" + fields + "\\r\\n").encode())
    open_ones.append(one)
time.sleep(120)
"""
_ALONE = f"""
import socket, sys
where = sys.argv[1]
if where.startswith("/"):
    one = socket.socket(socket.AF_UNIX)
    one.connect(where)
else:
    host, port = where.split()
    one = socket.create_connection((host, int(port)), 100)
fields = "Host: 127.0.0.1\\r\\nMetadata: true\\r\\nConnection: close\\r\\n"
one.sendall(("GET {LONE} HTTP/1.1\\r\\n" + fields + "\\r\\n").encode())
print(one.recv(65536).split()[1].decode())
"""


def waiting(proxy: HostedProxy) -> int:
    status = json.loads(proxy.get("/-/status.json").body)
    return sum(int(budget["waiting"]) for budget in status["budget"])


def served_before(azure: Azure, where: str, user: int) -> int:
    """Ask once, and return how many requests of others reached IMDS between the question and its own arrival."""
    before = len(azure.arrivals("/metadata/instance"))
    done = azure.vm.run(sys.executable, "-ISc", _ALONE, where, user=user, timeout=120)
    assert done.stdout == "404\n", "IMDS has no such tag"
    targets = [arrival.target for arrival in azure.arrivals("/metadata/instance")]
    return targets.index(LONE) - before


@contextlib.contextmanager
def flooding(azure: Azure, proxy: HostedProxy, where: str, user: int, count: int = FLOOD) -> Iterator[None]:
    with azure.vm.start(sys.executable, "-ISc", _FLOOD, where, str(count), f"{user}-", user=user):
        wait_until(lambda: waiting(proxy) >= count * 0.9, 60)
        yield


@pytest.mark.parametrize("way", ["redirect", "loopback", "IPv6 loopback", "Unix socket"])
def test_flood_of_a_thousand_delays_another_users_request_by_a_round(azure: Azure, way: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    path = tmp_path / "imdsproxy.sock"
    where = {
        "redirect": "169.254.169.254 80",
        "loopback": f"127.0.0.1 {PROXY_PORT}",
        "IPv6 loopback": f"::1 {PROXY_PORT}",
        "Unix socket": str(path),
    }[way]
    host = "::" if way == "IPv6 loopback" else "127.0.0.1"
    with azure.running_proxy(max_wait=600, uds=path, host=host) as proxy:
        azure.redirect()
        path.chmod(0o666)
        with flooding(azure, proxy, where, ORDINARY_USER):
            assert served_before(azure, where, ANOTHER_USER) <= TWO_ROUNDS
            assert waiting(proxy) > FLOOD / 2


def test_services_of_one_user_take_turns(azure: Azure) -> None:
    group = _control_groups() / f"imdsproxy-test-{id(azure)}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this system allows no control group: {error}")
    try:
        with azure.running_proxy(max_wait=600) as proxy:
            azure.redirect()
            with flooding(azure, proxy, "169.254.169.254 80", 0, 200):
                enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
                command = ("sh", "-c", enter, str(group), sys.executable, "-ISc", _ALONE, "169.254.169.254 80")
                before = len(azure.arrivals("/metadata/instance"))
                assert azure.vm.run(*command, timeout=120).stdout == "404\n"
                targets = [arrival.target for arrival in azure.arrivals("/metadata/instance")]
                assert targets.index(LONE) - before <= TWO_ROUNDS
    finally:
        group.rmdir()


def test_processes_of_the_proxys_own_user_take_turns(azure: Azure) -> None:
    """The proxy may read the descriptors of its own user's processes."""
    with azure.running_proxy(max_wait=600) as proxy:
        where = f"127.0.0.1 {PROXY_PORT}"
        with flooding(azure, proxy, where, PROXY_USER, 200):
            assert served_before(azure, where, PROXY_USER) <= TWO_ROUNDS


def _control_groups() -> Path:
    """Return where the groups of cgroup v2 are."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        kind = line.split()[2]
        if kind == "cgroup2":
            return Path(line.split()[1])
    pytest.skip("this system has no cgroup v2")


_CLOSING = """
import socket, sys
host, port, target = sys.argv[1:]
with socket.create_connection((host, int(port)), 5) as one:
    one.sendall(("GET " + target + " HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nMetadata: true\\r\\n\\r\\n").encode())
"""


@pytest.mark.parametrize("where", ["169.254.169.254 80", f"127.0.0.1 {PROXY_PORT}"])
def test_client_that_closes_after_its_request_is_not_taken_for_root(azure: Azure, where: str) -> None:
    """The kernel reports user 0 for a socket that has no owner any more."""
    with azure.running_proxy(access_log=True) as proxy:
        azure.redirect()
        assert azure.vm.fetch(INSTANCE, user=ORDINARY_USER).status == 200
        proxy.process.send_signal(signal.SIGSTOP)  # so the client has ended before its connection is accepted
        try:
            azure.vm.run(sys.executable, "-ISc", _CLOSING, *where.split(), INSTANCE, user=ORDINARY_USER)
        finally:
            proxy.process.send_signal(signal.SIGCONT)
        wait_for_log(proxy, "path=/metadata/instance", times=2)
        first, second = re.findall("client=(.*?) method=", proxy.log)
        assert first == f'"user {ORDINARY_USER}"'
        assert second in {"127.0.0.1", "10.0.0.4"}


def test_client_in_another_namespace_is_its_address(azure: Azure) -> None:
    with azure.running_proxy(access_log=True) as proxy:
        azure.redirect("--node")
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        assert azure.routed.fetch(INSTANCE).status == 200
        wait_for_log(proxy, "client=10.0.0.50 ")
