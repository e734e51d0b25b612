"""Start and end a pod from its manifest as the kubelet does: real processes on a host of `hosts.py`.

    node = Node(azure.vm, tmp_path)
    with pod_network(azure.vm, 3) as (host, address), node.running(manifests.pod("sidecar"), host, address) as pod:
        pod.wait_until_ready()
        pod.log("example")

Init containers run one after the other; one that stays (a native sidecar) is waited for until its startup probe
succeeds. Then come the pod's own containers. Probes are asked from the node, at the pod's address, or run in its
network. At the end the own containers are told first, then the sidecars, the last one first, within the pod's grace.

A container's image is this checkout and this machine's files, read-only; its command, user, capabilities, environment
and mounts are the manifest's. The proxy is forked where that is possible, because its start takes most of the time of
a pod's. Not here: cgroups, seccomp, restarts, the API.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests import forkserver, manifests
from tests.kit import ROOT, wait_until
from tests.manifests import Container, Pod
from tests.system.containers import Mount, Options, contained, contained_module
from tests.system.hosts import Host, link
from tests.system.topology import Process

_PATH = "/opt/imdsproxy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROXY = "/opt/imdsproxy/bin/imdsproxy"
_PROGRAMS = {"/opt/imdsproxy/bin/python3": (), _PROXY: ("-m", "imdsproxy")}
_LEAST_GRACE = 2  # seconds that the kubelet gives a container even where the pod's grace is used up
_KUBELET = {"User-Agent": "kube-probe/1.33"}
_numbers = itertools.count(1)


@contextlib.contextmanager
def pod_network(node: Host, number: int) -> Iterator[tuple[Host, str]]:
    """Make the network of another pod in the node's bridge, and return it with its address."""
    with Host(f"pod{number}") as pod:
        link(node, f"veth{number}", pod, "eth0")
        node.ip(f"link set veth{number} master cbr0")
        pod.ip(f"addr add 10.244.0.{number}/24 dev eth0", "route add default via 10.244.0.1 dev eth0")
        yield pod, f"10.244.0.{number}"


@dataclass
class RunningContainer:
    """A container's process and how it went."""

    container: Container
    process: Process
    log: Path
    began: float
    told: float | None = None
    """When it was told to end."""
    ended: float | None = None

    @property
    def status(self) -> int | None:
        """Its exit status, a signal's number negative; None while it runs."""
        found = self.process.poll()
        if found is not None and self.ended is None:
            self.ended = time.monotonic()
        return found

    def tell(self) -> None:
        """Send SIGTERM. A container that has just started gets a moment to install its handler.

        The kernel does not deliver a signal to the first process of a namespace without a handler.
        """
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.status is not None or self._heeds_its_end(), 2)
        if self.status is None:
            self.told = time.monotonic()
            self.process.terminate()

    def _heeds_its_end(self) -> bool:
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        masks = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
        return any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)


@dataclass
class RunningPod:
    """A pod and its containers, in the order in which they began."""

    pod: Pod
    node: Host
    host: Host
    address: str
    _stack: contextlib.ExitStack
    _folder: Path
    _root: Path
    containers: dict[str, RunningContainer] = field(default_factory=dict)

    def __getitem__(self, name: str) -> RunningContainer:
        return self.containers[name]

    def log(self, name: str) -> str:
        """Return what a container has written, in whole lines."""
        text = self.containers[name].log.read_text(encoding="utf-8")
        return text[: text.rfind("\n") + 1]

    def probe(self, container: Container, name: str) -> bool:
        """Ask once, as the kubelet does; false if there is another answer than success, or none in time."""
        asked = container.probes[name]
        if "exec" in asked:
            program, *arguments = asked["exec"]["command"]
            command = [sys.executable, *_PROGRAMS[program], *arguments]
            return self.host.run(*command, check=False).returncode == 0
        get = asked["httpGet"]
        address = get.get("host", self.address)
        written = f"[{address}]" if ":" in address else address
        url = f"http://{written}:{container.port(get['port'])}{get['path']}"
        answer = self.node.fetch(url, headers=_KUBELET, timeout=asked.get("timeoutSeconds", 1))
        return 200 <= answer.status < 400

    def ready(self) -> bool:
        """Whether everything that has a readiness probe succeeds at it."""
        return all(
            self.probe(one.container, "readinessProbe")
            for one in self.containers.values()
            if "readinessProbe" in one.container.probes
        )

    def alive(self) -> bool:
        """Whether everything that has a liveness probe succeeds at it."""
        return all(
            self.probe(one.container, "livenessProbe")
            for one in self.containers.values()
            if "livenessProbe" in one.container.probes
        )

    def wait_until_ready(self) -> None:
        wait_until(self.ready, 30)

    def start(self) -> None:
        """Start everything, in the pod's order. AssertionError with its log if a container cannot begin."""
        for container in self.pod.init_containers:
            running = self.start_container(container)
            if container.stays:
                self._wait_for_startup(running)
            else:
                # It may take as long as it likes, and has to succeed.
                assert running.process.wait(30) == 0, running.log.read_text(encoding="utf-8")
                assert running.status == 0
        for container in self.pod.own_containers:
            running = self.start_container(container)
            self._wait_for_startup(running)

    def start_container(self, container: Container) -> RunningContainer:
        """Start one container; what has its name already is forgotten."""
        image = manifests.image(container.image)
        fields = container.fields
        # What the API says of command and args, and of an image's own: a command sets aside both of the image's.
        command = [*fields.get("command", image.entrypoint)]
        command += fields.get("args", [] if "command" in fields else image.command)
        log = self._folder / f"{container.name}-{next(_numbers)}.log"
        process = self._stack.enter_context(self._process(container, command, log))
        running = RunningContainer(container, process, log, time.monotonic())
        self.containers[container.name] = running
        return running

    def _process(
        self, container: Container, command: list[str], log: Path
    ) -> contextlib.AbstractContextManager[Process]:
        security = container.security
        if security.get("privileged", False):
            # Nothing is kept from it, /proc/sys least of all, so here it is a process of the node's like any other.
            mapped = [sys.executable, *_PROGRAMS[command[0]], *command[1:]]
            return self.host.start(*mapped, env=self._environment(container), log=log)
        options: Options = {
            "user": security["runAsUser"],
            "group": security.get("runAsGroup", 0),  # where neither manifest nor image names a group
            "groups": security.get("supplementalGroups", ()),
            "mounts": [*self._programs(), *self._mounts(container)],
            "capabilities": container.capabilities,
        }
        env = self._environment(container)
        if forkserver.AVAILABLE and command[0] == _PROXY:
            return contained_module(self.host, "imdsproxy.__main__", *command[1:], env=env, log=log, **options)
        return contained(self.host, *command, env=env, log=log, **options)

    def end(self) -> None:
        """End the pod, and wait until all of it has ended within its grace."""
        end = time.monotonic() + self.pod.grace
        own = [self.containers[one.name] for one in self.pod.own_containers if one.name in self.containers]
        for running in own:
            running.tell()
        for running in own:
            _wait(running, end)
        self.end_sidecars(end)

    def end_sidecars(self, end: float) -> None:
        """End the native sidecars, the last one first; the pod's own containers have ended."""
        for container in reversed(self.pod.init_containers):
            if container.stays and container.name in self.containers:
                running = self.containers[container.name]
                running.tell()
                _wait(running, end)

    def wait_until_completed(self) -> int:
        """Wait until the pod's own containers end by themselves, end the sidecars, and return the worst status."""
        own = [self.containers[one.name] for one in self.pod.own_containers]
        wait_until(lambda: all(one.status is not None for one in own), 60)
        self.end_sidecars(time.monotonic() + self.pod.grace)
        return max(abs(one.status or 0) for one in own)

    def kill(self) -> None:
        """Kill everything at once, as a node's out-of-memory killer or a crash of its runtime may."""
        for running in self.containers.values():
            running.process.kill()
            running.process.wait(60)

    def _wait_for_startup(self, running: RunningContainer) -> None:
        probe = running.container.probes.get("startupProbe")
        if probe is None:
            return

        def started() -> bool:
            assert running.status is None, running.log.read_text(encoding="utf-8")
            return self.probe(running.container, "startupProbe")

        wait_until(started, probe["periodSeconds"] * probe["failureThreshold"])

    def _environment(self, container: Container) -> dict[str, str]:
        downward = {"status.podIP": self.address}
        return {"PATH": _PATH, "PYTHONPATH": str(ROOT), **container.env(downward)}

    def _programs(self) -> list[Mount]:
        found = []
        for place, arguments in _PROGRAMS.items():
            script = self._folder / Path(place).name
            if not script.exists():
                line = " ".join(("exec", sys.executable, *arguments, '"$@"'))
                script.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
                script.chmod(0o755)
            found.append(Mount(script, place, read_only=True))
        return found

    def _mounts(self, container: Container) -> list[Mount]:
        sources: dict[str, Path] = {}
        for volume in self.pod.spec.get("volumes", []):
            path = volume["hostPath"]
            source = self._root / path["path"].lstrip("/")
            if path["type"] == "DirectoryOrCreate" and not source.exists():
                source.mkdir(parents=True)
                source.chmod(0o755)
            sources[volume["name"]] = source
        return [
            Mount(sources[mount["name"]], mount["mountPath"], read_only=mount.get("readOnly", False))
            for mount in container.fields.get("volumeMounts", [])
        ]


@dataclass(frozen=True)
class Node:
    """A node: its network, and the files that its pods see as `hostPath`."""

    host: Host
    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / f"{self.host.name}-files"

    def pod(self, pod: Pod, host: Host, address: str) -> contextlib.AbstractContextManager[RunningPod]:
        """Return a pod that has not begun; whatever runs in it is ended on the way out."""
        return self._pod(pod, host, address)

    @contextlib.contextmanager
    def running(self, pod: Pod, host: Host, address: str) -> Iterator[RunningPod]:
        """Start a pod in this network, and end it with the context unless it has ended."""
        with self._pod(pod, host, address) as running:
            running.start()
            yield running
            running.end()

    @contextlib.contextmanager
    def _pod(self, pod: Pod, host: Host, address: str) -> Iterator[RunningPod]:
        folder = self.folder / f"{pod.name}-{next(_numbers)}"
        folder.mkdir()
        folder.chmod(0o755)
        with contextlib.ExitStack() as stack:
            yield RunningPod(pod, self.host, host, address, stack, folder, self.root)


def _wait(running: RunningContainer, end: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(max(end - time.monotonic(), _LEAST_GRACE))
    if running.status is None:
        running.process.kill()
        running.process.wait(60)
        assert running.status is not None
