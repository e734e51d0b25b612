"""The Kubernetes manifests, run: the pods of each layout as processes on separate hosts, started as by the kubelet."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import itertools
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imdsproxy.testing.counting import most_in_a_second
from tests import chart, manifests
from tests.kit import wait_until
from tests.manifests import Pod
from tests.system.hosts import Host
from tests.system.kubelet import Node, RunningContainer, RunningPod, pod_network
from tests.system.topology import ORDINARY_USER, ROUTE_LOCALNET, Azure
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.system

PROXY = "http://127.0.0.1:8254"
IMAGE_USER = 65532
REDIRECTED_USER = 8254
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"

# Asks by the Unix socket, as a program without a sidecar: path of the socket, target, times.
_BY_SOCKET = """
import http.client, json, socket, sys
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])
found = []
for target in sys.argv[2:]:
    connection = Connection("localhost")
    connection.request("GET", target, headers={"Metadata": "true"})
    found.append(connection.getresponse().status)
print(json.dumps(found))
"""


@pytest.fixture
def node(azure: Azure, tmp_path: Path) -> Node:
    # A bridge without an address of its own takes another one when a pod comes, and the others go on using the old.
    azure.vm.ip("link set cbr0 address 0a:58:0a:f4:00:01")
    return Node(azure.vm, tmp_path)


@contextlib.contextmanager
def running(node: Node, layout: str, number: int) -> Iterator[RunningPod]:
    """Run the pod of a layout in a network of its own, ready; ends it."""
    with (
        pod_network(node.host, number) as (host, address),
        node.running(manifests.pod(layout), host, address) as pod,
    ):
        pod.wait_until_ready()
        yield pod


@contextlib.contextmanager
def on_the_node(node: Node, layout: str) -> Iterator[RunningPod]:
    """Run the pod of a layout in the node's own network, ready."""
    pod = manifests.pod(layout)
    assert pod.spec["hostNetwork"]
    with node.running(pod, node.host, "10.0.0.4") as running:
        running.wait_until_ready()
        yield running


def seen(pod: RunningPod) -> list[str]:
    """Return the answers that the example program has got so far."""
    return pod.log("example").splitlines()


def wait_for_rounds(pod: RunningPod, rounds: int) -> list[str]:
    """Wait until the example program has requested both of its targets this often, and return the answers."""
    before = len(seen(pod))
    wait_until(lambda: len(seen(pod)) >= before + 2 * rounds, 30)
    return seen(pod)[before:]


def verify(host: Host, layout: str) -> str:
    """Run in this host what `helm test` runs in a pod; AssertionError with its output if it fails."""
    (pod,) = manifests.pods(manifests.read(chart.verification(manifests.values(layout))))
    program, *arguments = pod.container("verify").fields["command"]
    assert program == "/opt/imdsproxy/bin/python3"
    return host.run(sys.executable, *arguments, user=IMAGE_USER).stdout


def ended_well(pod: RunningPod, *names: str) -> bool:
    """Return whether these ended in this order, each signalled only after the one before had ended."""
    found = [pod[name] for name in names]
    assert [one.status for one in found] == [0] * len(found), [pod.log(name) for name in names]
    for before, after in itertools.pairwise(found):
        assert before.ended is not None
        assert after.told is not None
        assert after.told >= before.ended
    return True


# One pod


def test_sidecar_serves_only_its_own_pod(azure: Azure, node: Node) -> None:
    with running(node, "sidecar", 3) as pod:
        answers = wait_for_rounds(pod, 2)
        assert all(answer.startswith("200 ") and "imdsproxy; hit" in answer for answer in answers[2:]), answers
        assert pod.alive()
        assert [arrival.target for arrival in azure.arrivals()].count(NAME) == 1
        for host in (node.host, azure.bridged):
            refused = host.fetch(f"http://{pod.address}:8254{INSTANCE}", timeout=2)
            assert (refused.status, "refused" in refused.error) == (0, True)
            # Where the kubelet asks there are figures, and nothing of IMDS's.
            for target, status in ((INSTANCE, 404), (TOKEN, 404), ("/-/metrics", 200)):
                assert host.fetch(f"http://{pod.address}:8256{target}").status == status
    assert ended_well(pod, "example", "imdsproxy")


def test_kubelet_reaches_a_sidecar_in_an_ipv6_network(azure: Azure, node: Node) -> None:
    azure.vm.ip("addr add fd00::1/64 dev cbr0 nodad")
    pod = manifests.pod("sidecar")
    with pod_network(azure.vm, 3) as (host, address):
        host.ip(f"addr del {address}/24 dev eth0", "addr add fd00::3/64 dev eth0 nodad")
        with node.pod(pod, host, "fd00::3") as started:
            started.start_container(pod.container("imdsproxy"))
            wait_until(started.alive)


def test_applications_init_container_can_use_the_sidecar(azure: Azure, node: Node) -> None:
    pod = manifests.pod("sidecar")
    first = copy.deepcopy(pod.spec["containers"][0])
    first |= {"name": "first", "command": manifests.pod("job").spec["containers"][0]["command"]}
    pod = dataclasses.replace(pod, spec={**pod.spec, "initContainers": [*pod.spec["initContainers"], first]})
    with pod_network(azure.vm, 3) as (host, address), node.running(pod, host, address) as started:
        assert list(started.containers) == ["imdsproxy", "first", "example"]
        assert started.log("first").startswith(f"200 {NAME} imdsproxy; ")


def test_job_completes_with_a_sidecar(azure: Azure, node: Node) -> None:
    with pod_network(azure.vm, 3) as (host, address), node.pod(manifests.pod("job"), host, address) as pod:
        pod.start()
        wait_until(lambda: pod["example"].status is not None)
        assert pod["imdsproxy"].status is None
        assert pod.wait_until_completed() == 0
        assert pod["example"].told is None
        assert pod.log("example").startswith(f"200 {NAME} imdsproxy; ")
        assert ended_well(pod, "example", "imdsproxy")


def test_hard_coded_address_is_redirected_to_the_sidecar(azure: Azure, node: Node) -> None:
    with running(node, "sidecar-redirect", 3) as pod:
        answers = wait_for_rounds(pod, 2)
        assert all(answer.startswith("200 ") and "imdsproxy; hit" in answer for answer in answers[2:]), answers
        # For any user, above all the image's own, which many other images have too.
        for user in (0, ORDINARY_USER, IMAGE_USER):
            assert pod.host.fetch(NAME, user=user).by_proxy
        assert len(azure.arrivals(NAME)) == 1
        # The pod's neighbours and its node are not redirected.
        for host in (azure.bridged, azure.vm):
            assert not host.fetch(NAME).by_proxy
    assert ended_well(pod, "example", "imdsproxy")


def test_stopped_redirected_sidecar_is_neither_bypassed_nor_replaced(azure: Azure, node: Node) -> None:
    with running(node, "sidecar-redirect", 3) as pod:
        pod["imdsproxy"].process.kill()
        pod["imdsproxy"].process.wait(60)
        before = len(azure.arrivals())
        assert "refused" in pod.host.fetch(NAME).error
        assert len(azure.arrivals()) == before
        pod.start_container(pod.pod.container("imdsproxy"))
        wait_until(pod.ready)
        assert pod.host.fetch(NAME).by_proxy


# One budget


def test_sidecars_without_a_daemon_keep_one_budget(azure: Azure, node: Node) -> None:
    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(running(node, "sidecar-shared-budget", number)) for number in range(3, 8)]
        directory = node.root / "run/imdsproxy"
        assert (directory.stat().st_uid, directory.stat().st_gid, directory.stat().st_mode & 0o777) == (0, 65532, 0o770)
        with concurrent.futures.ThreadPoolExecutor(len(pods)) as pool:
            began = time.monotonic()
            found = list(pool.map(ask_distinct, pods))
            took = time.monotonic() - began
        assert {status for statuses in found for status in statuses} == {200}
        times = [arrival.at for arrival in azure.arrivals()]
        assert len(times) >= 30
        assert most_in_a_second(times) <= 5, (took, times)
        assert {arrival.status for arrival in azure.arrivals()} == {200}


@pytest.mark.parametrize("users", [(IMAGE_USER, REDIRECTED_USER), (REDIRECTED_USER, IMAGE_USER)])
def test_redirected_and_plain_sidecars_share_the_budget_file_by_group(
    azure: Azure, node: Node, users: tuple[int, int]
) -> None:
    with contextlib.ExitStack() as stack:
        for number, user in enumerate(users, start=3):
            pod = manifests.pod("sidecar-shared-budget")
            spec = copy.deepcopy(dict(pod.spec))
            spec["initContainers"][1]["securityContext"]["runAsUser"] = user
            network = stack.enter_context(pod_network(azure.vm, number))
            started = stack.enter_context(node.running(dataclasses.replace(pod, spec=spec), *network))
            started.wait_until_ready()
            assert "warning" not in started.log("imdsproxy")
        assert (node.root / "run/imdsproxy/budget").stat().st_mode & 0o777 == 0o660


def ask_distinct(pod: RunningPod) -> list[int]:
    """Request six unused targets from a pod's proxy, and return the statuses."""
    number = pod.address.rpartition(".")[2]
    targets = [f"{PROXY}/metadata/instance/compute?api-version=2021-02-01&unused={number}-{one}" for one in range(6)]
    return [pod.host.fetch(target, timeout=30).status for target in targets]


# One proxy a node


@pytest.mark.parametrize("layout", ["node", "node-host-network"])
def test_chained_sidecars_share_the_nodes_cache_without_reaching_imds(azure: Azure, node: Node, layout: str) -> None:
    with contextlib.ExitStack() as stack:
        if layout == "node":
            stack.enter_context(running(node, layout, 3))
        else:
            stack.enter_context(on_the_node(node, layout))
        keep_from_imds(azure, "10.244.0.4", "10.244.0.5", "10.244.0.6")
        pods = [stack.enter_context(running(node, "sidecar-chained", number)) for number in (4, 5, 6)]
        for pod in pods:
            answers = wait_for_rounds(pod, 2)
            assert all(answer.startswith("200 ") and "imdsproxy; hit" in answer for answer in answers[2:]), answers
            assert pod.host.fetch(INSTANCE, timeout=0.5).status == 0
        assert len(azure.arrivals(NAME)) == 1
        assert len(azure.arrivals("/metadata/identity")) == 1
        for number, pod in enumerate(pods):
            answer = pod.host.fetch(PROXY + INSTANCE)
            # The age is that of IMDS's own answer, through all caches.
            assert (answer.status, "age" in answer.headers) == (200, number > 0)
        assert len(azure.arrivals(INSTANCE)) == 1
        assert most_in_a_second([arrival.at for arrival in azure.arrivals()]) <= 5


def keep_from_imds(azure: Azure, *pods: str) -> None:
    """Do as a network plugin with the layout's NetworkPolicy, or AKS where pods are kept from IMDS."""
    azure.vm.nft(
        "table ip plugin { chain forward { type filter hook forward priority 0; "
        f"ip saddr {{ {', '.join(pods)} }} ip daddr 169.254.169.254 drop; }}; }}"
    )


def test_daemon_restart_is_not_seen_by_clients_of_stored_answers(azure: Azure, node: Node) -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(pod_network(azure.vm, 3))
        first = stack.enter_context(node.pod(manifests.pod("node"), *daemon))
        first.start()
        pods = [stack.enter_context(running(node, "sidecar-chained", number)) for number in (4, 5)]
        for pod in pods:
            wait_for_rounds(pod, 1)
        marks = [len(seen(pod)) for pod in pods]
        first.kill()
        for pod in pods:
            wait_for_rounds(pod, 2)
            assert pod.ready()
            assert pod.alive()
        second = stack.enter_context(node.running(manifests.pod("node"), *daemon))
        second.wait_until_ready()
        for pod, mark in zip(pods, marks, strict=True):
            wait_for_rounds(pod, 2)
            assert all(line.startswith("200 ") for line in seen(pod)[mark:]), seen(pod)[mark:]
            # By the new socket, at the old one's place.
            assert pod.host.fetch(PROXY + INSTANCE).status == 200


def test_pod_started_before_the_daemon_serves_once_the_daemon_does(azure: Azure, node: Node) -> None:
    with (
        pod_network(azure.vm, 4) as network,
        node.running(manifests.pod("sidecar-chained"), *network) as pod,
    ):
        assert pod.alive()
        assert not pod.ready()
        with running(node, "node", 3):
            wait_until(pod.ready, 60)
            wait_until(lambda: seen(pod)[-1:] and seen(pod)[-1].startswith("200 "), 30)


@pytest.mark.parametrize(("groups", "found"), [((IMAGE_USER,), [200, 200]), ((), None)])
def test_program_with_the_sockets_group_needs_no_sidecar(
    azure: Azure, node: Node, groups: tuple[int, ...], found: list[int] | None
) -> None:
    """As `docs/kubernetes.md` has it: supplementalGroups, and the directory read-only."""
    with running(node, "node", 3):
        pod = program_at_the_socket(groups, NAME, TOKEN)
        with pod_network(azure.vm, 4) as network, node.pod(pod, *network) as program:
            program.start()
            status = program.wait_until_completed()
            assert (json.loads(program.log("program")) if status == 0 else None) == found
            assert ("PermissionError" in program.log("program")) is (found is None)


def test_nodes_proxy_without_tokens_gives_metadata_only(azure: Azure, node: Node) -> None:
    with running(node, "node-no-tokens", 3), pod_network(azure.vm, 4) as network:
        pod = program_at_the_socket((IMAGE_USER,), NAME, TOKEN)
        with node.pod(pod, *network) as program:
            program.start()
            assert program.wait_until_completed() == 0
            assert json.loads(program.log("program")) == [200, 403]
    assert azure.arrivals("/metadata/identity") == []


def program_at_the_socket(groups: tuple[int, ...], *targets: str) -> Pod:
    """Run a pod that sends requests to the node's socket, as a user of its own in these groups."""
    chained, plain = manifests.pod("sidecar-chained"), manifests.pod("job")
    (program,) = copy.deepcopy(plain.spec["containers"])
    (mount,) = chained.container("imdsproxy").fields["volumeMounts"]
    assert mount["readOnly"]
    socket = "/run/imdsproxy/imdsproxy.sock"
    program |= {
        "name": "program",
        "command": ["/opt/imdsproxy/bin/python3", "-ISc", _BY_SOCKET, socket, *targets],
        "volumeMounts": [mount],
    }
    security = {**plain.spec["securityContext"], "supplementalGroups": list(groups)}
    spec = {**plain.spec, "containers": [program], "volumes": chained.spec["volumes"], "securityContext": security}
    return Pod("Job", "program", {}, {name: value for name, value in spec.items() if name != "initContainers"})


# A node with an address for its proxy


def test_pods_reach_the_proxy_at_the_nodes_address_and_other_machines_do_not(azure: Azure, node: Node) -> None:
    with on_the_node(node, "node-address") as pod:
        base = f"http://{manifests.values('node-address').get('address', {}).get('ip', '169.254.20.10')}"
        for client in (azure.vm, azure.routed, azure.bridged):
            for target in (NAME, TOKEN):
                answer = client.fetch(base + target)
                assert (answer.status, answer.by_proxy) == (200, True), client.name
        assert len(azure.arrivals(NAME)) == len(azure.arrivals(TOKEN)) == 1
        azure.neighbour.ip("route add 169.254.20.10/32 via 10.0.0.4 dev eth0")
        try:
            assert azure.neighbour.fetch(base + NAME, timeout=3).status == 403
        finally:
            azure.neighbour.ip("route del 169.254.20.10/32")
        assert "answer 2: Cache-Status: imdsproxy; hit" in verify(azure.routed, "node-address")
        assert "imdsproxy0" in azure.vm.run("ip", "-o", "link").stdout
    assert ended_well(pod, "imdsproxy", "imdsproxy-address")
    assert "imdsproxy0" not in azure.vm.run("ip", "-o", "link").stdout


# A node whose data plane leads pods to the proxy


def test_proxy_without_privilege_serves_what_the_data_plane_leads_to_it(azure: Azure, node: Node) -> None:
    """What Cilium does by the policy, nftables does here: another destination, except for the proxy's own calls."""
    with running(node, "node-cilium", 3) as pod:
        (policy,) = [one for one in manifests.documents("node-cilium") if one["kind"] == "CiliumLocalRedirectPolicy"]
        frontend, backend = policy["spec"]["redirectFrontend"]["addressMatcher"], policy["spec"]["redirectBackend"]
        matched = f"ip daddr {frontend['ip']} tcp dport {frontend['toPorts'][0]['port']}"
        assert policy["spec"]["skipRedirectFromBackend"]
        rules = (
            "table ip lrp {\nchain prerouting {\ntype nat hook prerouting priority dstnat\n"
            f"ip saddr != {pod.address} {matched} dnat to {pod.address}:{backend['toPorts'][0]['port']}\n}}\n}}\n"
        )
        azure.vm.run("nft", "-f", "-", stdin=rules)
        try:
            for target in (NAME, TOKEN):
                answers = [azure.routed.fetch(target) for _ in range(2)]
                assert [(answer.status, answer.by_proxy) for answer in answers] == [(200, True)] * 2
                assert len(azure.arrivals(target)) == 1
            assert "answer 2: Cache-Status: imdsproxy; hit" in verify(azure.routed, "node-cilium")
            # Without a redirect, the node's own programs ask IMDS.
            assert not azure.vm.fetch(NAME).by_proxy
        finally:
            azure.vm.run("nft", "delete", "table", "ip", "lrp")
        assert not azure.routed.fetch(NAME).by_proxy
        with pytest.raises(AssertionError, match="not answered by imdsproxy"):
            verify(azure.routed, "node-cilium")
    assert ended_well(pod, "imdsproxy")


# A redirected node


def test_redirect_of_a_node_ends_with_the_proxys_pod(azure: Azure, node: Node) -> None:
    azure.vm.sysctl(ROUTE_LOCALNET, 1)  # as kube-proxy does
    clients = (azure.vm, azure.routed, azure.bridged)
    with on_the_node(node, "node-redirect") as pod:
        for client in clients:
            for user in (0, ORDINARY_USER, IMAGE_USER):
                # Root's programs of the node, the kubelet among them, ask IMDS itself.
                assert client.fetch(NAME, user=user).by_proxy is (client is not azure.vm or user != 0)
        assert len(azure.arrivals(NAME)) == 2
        # A pod with a sidecar works there too: its calls end at the node's proxy.
        with running(node, "sidecar", 3) as sidecar:
            assert all(answer.startswith("200 ") for answer in wait_for_rounds(sidecar, 2))
        assert len(azure.arrivals(NAME)) == 2
        assert azure.counted("guard") == 0
    assert ended_well(pod, "imdsproxy", "imdsproxy-redirect-end")
    # Now the kubelet can fetch the next pod's image with a token from IMDS itself.
    assert azure.vm.run("nft", "list", "tables").stdout == ""
    for client in clients:
        answer = client.fetch(NAME)
        assert (answer.status, answer.by_proxy) == (200, False)


def test_left_over_redirect_is_removed(azure: Azure, node: Node) -> None:
    azure.vm.sysctl(ROUTE_LOCALNET, 1)
    with node.pod(manifests.pod("node-redirect"), azure.vm, "10.0.0.4") as pod:
        pod.start()
        pod.wait_until_ready()
        pod.kill()
    for client in (azure.vm, azure.routed, azure.bridged):
        assert "refused" in client.fetch(NAME, user=ORDINARY_USER).error
    assert azure.vm.fetch(NAME).status == 200
    with node.running(manifests.pod("node-redirect-remove"), azure.vm, "10.0.0.4") as remover:
        assert azure.vm.run("nft", "list", "tables").stdout == ""
        for client in (azure.vm, azure.routed, azure.bridged):
            answer = client.fetch(NAME)
            assert (answer.status, answer.by_proxy) == (200, False)
        assert remover["done"].status is None
    assert ended_well(remover, "done")


def test_container_sets_route_localnet_after_the_guard_is_loaded(azure: Azure, node: Node) -> None:
    assert azure.vm.run("sysctl", "-n", ROUTE_LOCALNET).stdout == "0\n"
    pod = manifests.pod("node-redirect-route-localnet")
    names = [container.name for container in pod.init_containers]
    assert names.index("imdsproxy-redirect") < names.index("imdsproxy-route-localnet")
    with on_the_node(node, "node-redirect-route-localnet"):
        assert azure.vm.run("sysctl", "-n", ROUTE_LOCALNET).stdout == "1\n"
        for client in (azure.routed, azure.bridged):
            assert client.fetch(NAME).by_proxy


# What the layouts have in common


# A proxy that watches pods needs an API server to start: tests/integration/test_pods.py.
@pytest.mark.parametrize("layout", [layout for layout in manifests.LAYOUTS if layout != "node-redirect-pods"])
def test_every_container_runs_as_its_manifest_states(azure: Azure, node: Node, layout: str) -> None:
    azure.vm.sysctl(ROUTE_LOCALNET, 1)
    pod = manifests.pod(layout)
    with contextlib.ExitStack() as stack:
        host, address = azure.vm, "10.0.0.4"
        if not pod.spec.get("hostNetwork"):
            host, address = stack.enter_context(pod_network(azure.vm, 3))
        started = stack.enter_context(node.running(pod, host, address))
        for container in pod.containers:
            if container in pod.own_containers or container.stays:
                runs_as_its_manifest_has_it(started[container.name])


def runs_as_its_manifest_has_it(running: RunningContainer) -> None:
    process = Path(f"/proc/{running.process.pid}/status")
    security = running.container.security

    def found() -> dict[str, str]:
        return dict(line.split(":\t", 1) for line in process.read_text(encoding="ascii").splitlines())

    # What makes it a container runs as root; that of a Job may have ended already.
    wait_until(lambda: running.status == 0 or found()["NoNewPrivs"] == "1")
    if running.status == 0:
        return
    status = found()
    assert status["Uid"].split() == [str(security["runAsUser"])] * 4
    assert status["NSpid"].split()[-1] == "1"
    held = [bit for bit in range(64) if int(status["CapBnd"], 16) >> bit & 1 and bit != _READ_ALL]
    assert held == [_CAPABILITIES[name] for name in running.container.capabilities]


_READ_ALL = 2  # CAP_DAC_READ_SEARCH, which stands for an image's own files, all of them readable
_CAPABILITIES = {"NET_BIND_SERVICE": 10, "NET_ADMIN": 12}


def test_example_notices_a_failing_proxy(azure: Azure, node: Node) -> None:
    with running(node, "sidecar", 3) as pod:
        wait_for_rounds(pod, 1)
        pod["imdsproxy"].process.send_signal(signal.SIGKILL)
        pod["imdsproxy"].process.wait(60)
        wait_until(lambda: "refused" in seen(pod)[-1])
        assert not pod.alive()
