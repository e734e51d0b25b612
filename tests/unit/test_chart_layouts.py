"""The Helm chart's layouts: where their pods run, what those may do, and how clients get to them."""

from __future__ import annotations

from typing import Any

import pytest

from imdsproxy.cli.command_line import FLAGS
from imdsproxy.settings.load import load
from imdsproxy.settings.model import Settings
from tests import chart
from tests.manifests import Container, Document
from tests.unit.test_chart import KINDS_OF_LAYOUT, OPTIONS, documents, every_kind, of_kind, pod, proxy

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.no_cover,
    pytest.mark.skipif(not chart.AVAILABLE, reason="helm-python-sdk has no wheel for this machine"),
]

Values = dict[str, Any]


def settings(container: Container) -> Settings:
    return load(environ=container.env({"status.podIP": "10.0.0.9"})).settings


# Nodes


LINUX = {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
EBPF = "kubernetes.azure.com/ebpf-host-routing"


def takes(values: Values, **labels: str) -> bool:
    """Return whether the scheduler may put the pod on a Linux node with these labels as well."""
    node = {**LINUX, **labels}
    spec = pod(values).spec
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    return spec["nodeSelector"].items() <= node.items() and all(
        (node.get(one["key"]) in one["values"]) is (one["operator"] == "In") for one in term["matchExpressions"]
    )


@every_kind
def test_nodes_that_get_a_proxy(layout: str) -> None:
    values = {"layout": layout}
    assert takes(values)
    assert takes(values, **{"kubernetes.io/arch": "arm64"})
    assert not takes(values, **{"kubernetes.io/os": "windows"})
    assert not takes(values, **{"kubernetes.io/arch": "s390x"})
    assert not takes(values, type="virtual-kubelet")


@every_kind
def test_redirect_keeps_off_nodes_with_ebpf_host_routing_alone(layout: str) -> None:
    assert takes({"layout": layout}, **{EBPF: "true"}) is (layout != "redirect")
    assert takes({"layout": layout}, **{EBPF: "false"})


def test_removal_of_the_redirect_reaches_every_node() -> None:
    assert takes({"layout": "redirect", "redirect": {"remove": True}}, **{EBPF: "true"})


@every_kind
def test_priority_class_is_off_by_default(layout: str) -> None:
    assert of_kind("PriorityClass", {"layout": layout}) == []
    assert "priorityClassName" not in pod({"layout": layout}).spec
    named = {"layout": layout, "priorityClass": {"name": "system-node-critical"}}
    assert of_kind("PriorityClass", named) == []
    assert pod(named).spec["priorityClassName"] == "system-node-critical"
    made = {"layout": layout, "priorityClass": {"create": True}}
    (found,) = of_kind("PriorityClass", made)
    assert pod(made).spec["priorityClassName"] == found["metadata"]["name"]


# What a layout may do


def test_one_value_chooses_how_clients_come() -> None:
    found = {layout: settings(proxy({"layout": layout})) for layout in KINDS_OF_LAYOUT}
    assert (found["address"].host, found["address"].port) == ("169.254.20.10", 80)
    assert (found["cilium"].host, found["cilium"].port) == ("10.0.0.9", 8254)
    assert (found["redirect"].host, found["redirect"].port) == ("127.0.0.1", 8254)
    assert (found["socket"].host, found["socket"].uds) == ("127.0.0.1", "/run/imdsproxy/imdsproxy.sock")
    assert documents({"layout": "none"}) == []


@pytest.mark.parametrize(
    ("values", "network", "path", "capabilities"),
    [
        ({"layout": "address"}, True, False, ["NET_ADMIN", "NET_BIND_SERVICE"]),
        ({"layout": "address", "address": {"port": 8254}}, True, False, ["NET_ADMIN"]),
        ({"layout": "cilium"}, False, False, []),
        ({"layout": "redirect"}, True, True, ["CHOWN", "NET_ADMIN", "NET_ADMIN"]),
        ({"layout": "socket"}, False, True, ["CHOWN"]),
        ({"layout": "socket", "socket": {"hostNetwork": True}}, True, True, ["CHOWN"]),
    ],
    ids=str,
)
def test_privilege_of_a_layout(values: Values, network: bool, path: bool, capabilities: list[str]) -> None:
    found = pod(values)
    assert found.spec.get("hostNetwork", False) is network
    assert any("hostPath" in volume for volume in found.spec.get("volumes", [])) is path
    assert sorted(one for container in found.containers for one in container.capabilities) == sorted(capabilities)
    policies = [document for document in documents(values) if document["kind"] == "NetworkPolicy"]
    assert len(policies) == (0 if network else 1)


@every_kind
def test_answers_are_handed_over_where_there_is_a_directory_of_the_node(layout: str) -> None:
    found = settings(proxy({"layout": layout})).handover_file
    assert found == ("/run/imdsproxy/handover" if layout in {"redirect", "socket"} else None)
    assert settings(proxy({"layout": layout, "handover": False})).handover_file is None


def test_a_port_that_is_not_reserved_needs_no_root() -> None:
    assert proxy({"layout": "address", "address": {"port": 8254}}).security["runAsUser"] == 65532


def test_proxy_starts_once_its_address_is_there() -> None:
    values = {"layout": "address", "address": {"ip": "169.254.20.20"}}
    maker = pod(values).init_containers[0]
    assert maker.stays
    assert maker.image == proxy(values).image
    assert "169.254.20.20" in maker.probes["startupProbe"]["exec"]["command"][-1]
    assert any("169.254.20.20" in argument for argument in maker.fields["args"])
    assert settings(proxy(values)).host == "169.254.20.20"


@pytest.mark.parametrize("respects", [True, False])
def test_redirect_respects_a_restriction_where_it_is_told_to(respects: bool) -> None:
    loader = pod({"layout": "redirect", "redirect": {"respectRestriction": respects}}).container("imdsproxy-redirect")
    assert ("--respect-restriction" in loader.fields["args"]) is respects
    assert {f"--{name}" for name in FLAGS["redirect"]} >= {flag.partition("=")[0] for flag in loader.fields["args"]}


def test_access_rules_are_mounted_and_a_change_starts_new_pods() -> None:
    values = {"layout": "address", **OPTIONS}
    (rules,) = of_kind("ConfigMap", values)
    assert rules["data"] == {"access.toml": OPTIONS["access"]}
    container = proxy(values)
    (mount,) = [one for one in container.fields["volumeMounts"] if one["name"] == "access"]
    assert container.env({"status.podIP": ""})["IMDSPROXY_ACCESS_FILE"] == f"{mount['mountPath']}/access.toml"
    (volume,) = [one for one in container.pod.spec["volumes"] if one["name"] == "access"]
    assert volume["configMap"]["name"] == rules["metadata"]["name"]
    changed = {**values, "access": OPTIONS["access"] + "\n"}
    assert template(values)["annotations"] != template(changed)["annotations"]


def template(values: Values) -> Document:
    (daemon,) = of_kind("DaemonSet", values)
    return dict(daemon["spec"]["template"]["metadata"])


# Cilium


def test_cilium_leads_imds_to_a_port_that_the_pod_declares() -> None:
    values = {"layout": "cilium"}
    (policy,) = of_kind("CiliumLocalRedirectPolicy", values)
    upstream = Settings().upstream_address
    frontend = policy["spec"]["redirectFrontend"]["addressMatcher"]
    assert frontend == {"ip": upstream.host, "toPorts": [{"port": str(upstream.port), "protocol": "TCP"}]}
    backend = policy["spec"]["redirectBackend"]
    container = proxy(values)
    assert backend["localEndpointSelector"]["matchLabels"].items() <= container.pod.labels.items()
    assert container.port(int(backend["toPorts"][0]["port"])) == settings(container).port
    (daemon,) = of_kind("DaemonSet", values)
    assert policy["metadata"]["namespace"] == daemon["metadata"]["namespace"]


@pytest.mark.parametrize("skips", [True, False])
def test_proxys_own_calls_are_not_led_back_unless_cilium_is_too_old_for_the_field(skips: bool) -> None:
    (policy,) = of_kind("CiliumLocalRedirectPolicy", {"layout": "cilium", "cilium": {"skipRedirectFromBackend": skips}})
    assert policy["spec"].get("skipRedirectFromBackend", False) is skips
    assert of_kind("CiliumLocalRedirectPolicy", {"layout": "cilium"})[0]["spec"]["skipRedirectFromBackend"]


def test_policy_opens_the_proxys_port_to_pods_alone() -> None:
    clients = [{"namespaceSelector": {"matchLabels": {"imds": "yes"}}}]
    for given, found in (([], [{"namespaceSelector": {}}]), (clients, clients)):
        (policy,) = of_kind("NetworkPolicy", {"layout": "cilium", "cilium": {"clients": given}})
        _, rule = policy["spec"]["ingress"]
        assert rule["from"] == found
        assert rule["ports"] == [{"protocol": "TCP", "port": "imdsproxy"}]


# Prometheus


@pytest.mark.parametrize("group", ["monitoring.coreos.com", "azmonitoring.coreos.com"])
def test_monitors_find_the_proxy_in_both_groups(group: str) -> None:
    values: Values = {"layout": "socket", "monitoring": {"group": group, "podMonitor": True, "serviceMonitor": True}}
    (service,) = of_kind("Service", values)
    (monitor,) = of_kind("ServiceMonitor", values)
    (pods,) = of_kind("PodMonitor", values)
    assert monitor["apiVersion"] == pods["apiVersion"] == f"{group}/v1"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    labels = pod(values).labels
    assert service["spec"]["selector"].items() <= labels.items()
    (port,) = service["spec"]["ports"]
    assert proxy(values).port(port["targetPort"]) == settings(proxy(values)).admin_port == port["port"]
    for endpoint in (*monitor["spec"]["endpoints"], *pods["spec"]["podMetricsEndpoints"]):
        assert (endpoint["port"], endpoint["path"]) == (port["name"], "/-/metrics")
    assert labels["imdsproxy"] in pods["spec"]["selector"]["matchExpressions"][0]["values"]
