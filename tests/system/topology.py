"""The network of a virtual machine at Azure: IMDS one hop away, a neighbour in the same subnet, two pods.

    imds       169.254.169.254, 10.0.0.1 on a bridge; the emulator serves port 80 of every address
    vm         eth0 10.0.0.4, forwards; IMDS and all else by way of 10.0.0.1
    neighbour  eth0 10.0.0.5, another machine on vm's uplink; reaches IMDS by itself
    routed     a pod, 10.0.0.50, as Azure CNI makes them: routed over a cable of its own, no address on vm's end
    bridged    a pod, 10.244.0.2, as kubenet makes them: in the bridge cbr0, 10.244.0.1

The proxy runs in vm with its default upstream, which is the emulator here and only here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forkserver import ForkedProcess
from tests.kit import Answer, ProxyProcess, ended, get, wait_until
from tests.system.hosts import Host, link

PROXY_USER = 4242
ORDINARY_USER = 5252
PROXY_PORT = 8254
ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet"


Process = subprocess.Popen[str] | ForkedProcess


@dataclass(frozen=True)
class Arrival:
    """One request that reached IMDS; `at` in seconds of `time.monotonic()`, `status` None if it was not answered."""

    at: float
    method: str
    target: str
    status: int | None


class HostedProxy(ProxyProcess):
    """The proxy running in a host; what is asked of it is asked over that host's loopback."""

    def __init__(self, host: Host, process: Process, log: Path, port: int) -> None:
        super().__init__(process, log, port)
        self.host = host

    def get(self, target: str) -> Answer:
        """Ask the proxy directly, without the redirect."""
        with self.host.inside():
            return get(self.port, target)

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples, whatever their labels; 0 if there is none."""
        with self.host.inside():
            return super().metric(name)

    def answers(self, page: str) -> bool:
        """Return whether a page under `/-/` is answered with 200 now; AssertionError if the process has ended."""
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError):
            return self.get(page).status == 200
        return False


@dataclass(frozen=True)
class Azure:
    """The hosts of the module's docstring, and what a test does with them."""

    imds: Host
    vm: Host
    neighbour: Host
    routed: Host
    bridged: Host
    folder: Path
    """Where the processes' logs go."""

    @contextlib.contextmanager
    def running_proxy(
        self, *, page: str = "/-/ready", port: int = PROXY_PORT, **settings: object
    ) -> Iterator[HostedProxy]:
        """Run the proxy in vm as PROXY_USER, its settings named in lower case; begins once `page` answers 200.

        There is no redirect but what `redirect` makes. It is ended as a service is; what it wrote stays in `log`.
        """
        log = self.folder / f"proxy-{time.monotonic_ns()}.log"
        env = {f"IMDSPROXY_{name.upper()}": str(value) for name, value in {"port": port, **settings}.items()}
        with self.vm.start_module("imdsproxy", user=PROXY_USER, env=env, log=log) as process:
            proxy = HostedProxy(self.vm, process, log, port)
            wait_until(lambda: proxy.answers(page))
            yield proxy
            if process.poll() is None:
                process.terminate()
                assert process.wait(15) == 0, proxy.log

    def ruleset(self, *flags: str) -> str:
        """Return what `imdsproxy redirect` prints with these flags, e.g. `--remove`."""
        return _ruleset(flags)

    def redirect(self, *flags: str, user: int | str = PROXY_USER) -> None:
        """Redirect vm's calls of IMDS, this user's exempt; `flags` as for the command, e.g. `--node`."""
        self.vm.nft(self.ruleset("--uid", str(user), *flags))

    def counted(self, chain: str) -> int:
        """Return how often the rules of a chain of the redirect's have been met; for NAT once a connection."""
        listed = json.loads(self.vm.run("nft", "--json", "list", "chain", "ip", "imdsproxy", chain).stdout)
        rules = [item["rule"] for item in listed["nftables"] if "rule" in item]
        return sum(
            expression["counter"]["packets"] for rule in rules for expression in rule["expr"] if "counter" in expression
        )

    def arrivals(self, target: str = "/") -> list[Arrival]:
        """Return what has reached IMDS since the test began, oldest first, of targets that begin so."""
        arrivals = [Arrival(**one) for one in json.loads(self._steer("GET", "/-/arrivals"))]
        return [arrival for arrival in arrivals if arrival.target.startswith(target)]

    def faults(self, *faults: dict[str, Any]) -> None:
        """Add faults at IMDS, as the emulator's `/-/faults` reads them, e.g. `{"status": 410, "for": 20}`."""
        self._steer("POST", "/-/faults", list(faults))

    def no_faults(self) -> None:
        """Remove all faults at IMDS."""
        self._steer("DELETE", "/-/faults")

    def event(self, **event: object) -> None:
        """Schedule an event, as the emulator's `/-/events` reads it, e.g. `EventType="Reboot"`."""
        self._steer("POST", "/-/events", event)

    def _steer(self, method: str, path: str, body: object = None) -> bytes:
        sent = None if body is None else json.dumps(body).encode()
        with self.imds.inside():
            answer = get(80, path, method=method, body=sent)
        assert answer.status == 200, answer
        return answer.body


@functools.cache
def _ruleset(flags: tuple[str, ...]) -> str:
    """Return what the command prints, which depends on its flags alone."""
    done = ended("redirect", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def running_azure(folder: Path) -> Iterator[Azure]:
    """Make the hosts and start the emulator; logs go to the folder."""
    with (
        Host("imds") as imds,
        Host("vm") as vm,
        Host("neighbour") as neighbour,
        Host("routed") as routed,
        Host("bridged") as bridged,
    ):
        _lay_subnet(imds, vm, neighbour)
        _add_routed_pod(vm, routed)
        _add_bridged_pod(vm, bridged)
        log = folder / "emulator.log"
        address = ("--host", "0.0.0.0", "--port", "80")
        with imds.start_module("imdsproxy.emulator", *address, log=log) as emulator:
            wait_until(lambda: _serves(imds, emulator, log))
            yield Azure(imds, vm, neighbour, routed, bridged, folder)


def _serves(imds: Host, emulator: Process, log: Path) -> bool:
    assert emulator.poll() is None, log.read_text(encoding="utf-8")
    with contextlib.suppress(OSError), imds.inside():
        return get(80, "/-/healthy").status == 200
    return False


def _lay_subnet(imds: Host, vm: Host, neighbour: Host) -> None:
    # Distributions differ in it; without the kernel's own check, the redirect's rules have to hold alone.
    for setting in ("all", "default"):
        vm.sysctl(f"net.ipv4.conf.{setting}.rp_filter", 0)
    vm.sysctl("net.ipv4.ip_forward", 1)
    imds.ip("link add name subnet type bridge", "link set subnet up")
    for number, (host, port) in enumerate(((vm, "to-vm"), (neighbour, "to-neighbour")), start=4):
        link(host, "eth0", imds, port)
        imds.ip(f"link set {port} master subnet")
        host.ip(
            f"addr add 10.0.0.{number}/24 dev eth0",
            "route add default via 10.0.0.1 dev eth0",
            "route add 169.254.169.254 via 10.0.0.1 dev eth0",
        )
    imds.ip(
        "addr add 169.254.169.254/32 dev lo",
        "addr add 10.0.0.1/24 dev subnet",
        # Azure knows which machine a pod is on.
        "route add 10.0.0.50 via 10.0.0.4",
        "route add 10.244.0.0/24 via 10.0.0.4",
    )


def _add_routed_pod(vm: Host, pod: Host) -> None:
    # vm answers for every address the pod asks for, 169.254.1.1 among them, which no machine has.
    link(vm, "azv1", pod, "eth0")
    vm.sysctl("net.ipv4.conf.azv1.proxy_arp", 1)
    vm.sysctl("net.ipv4.neigh.azv1.proxy_delay", 0)
    vm.ip("route add 10.0.0.50/32 dev azv1")
    pod.ip(
        "addr add 10.0.0.50/32 dev eth0",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0 onlink",
    )


def _add_bridged_pod(vm: Host, pod: Host) -> None:
    vm.ip(
        "link add name cbr0 address 0a:58:0a:f4:00:01 type bridge",
        "link set cbr0 up",
        "addr add 10.244.0.1/24 dev cbr0",
    )
    link(vm, "veth1", pod, "eth0")
    vm.ip("link set veth1 master cbr0")
    pod.ip("addr add 10.244.0.2/24 dev eth0", "route add default via 10.244.0.1 dev eth0")
