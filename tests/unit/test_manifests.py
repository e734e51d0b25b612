"""The Kubernetes manifests: valid for the API and for the proxy's settings, with minimal rights."""

from __future__ import annotations

import copy
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from imdsproxy.server import run as server
from imdsproxy.server.memory_bound import MOST_CONNECTIONS, connections_within
from imdsproxy.settings.load import Settings, load
from imdsproxy.settings.places import parse_upstream
from tests import manifests
from tests.kit import ROOT
from tests.manifests import KINDS, LAYOUTS, MANIFESTS, RENDERED, Container, Document, Pod

pytestmark = [pytest.mark.any_python, pytest.mark.no_cover]

# Native sidecars are on by default from 1.29 on.
VERSIONS = ("1.29", kubernetes_validate.latest_version().rpartition(".")[0])
OF_THE_CLUSTER = {"Namespace", "PriorityClass", "ClusterRole", "ClusterRoleBinding"}
PROXY_GROUP = 65532
NODE_ADDRESS = "169.254.20.10"
"""Of the layout `node-address`."""
IMAGE_USER = 65532
REDIRECTED_USER = 8254
VOLUMES_OF_THE_RESTRICTED = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
}
SHAPES = ("workload.yaml", "cronjob.yaml", "pod.yaml")

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
with_kubectl = pytest.mark.skipif(manifests.kubectl() is None, reason="kubectl is not installed")


def layout_containers(layout: str) -> list[Container]:
    return [container for pod in manifests.pods(manifests.documents(layout)) for container in pod.containers]


def proxies(layout: str) -> list[Container]:
    """Return the containers that run the proxy itself."""
    return [container for container in layout_containers(layout) if container.name == "imdsproxy"]


EVERY_CONTAINER = [
    pytest.param(container, id=f"{layout}-{container.name}")
    for layout in LAYOUTS
    for container in layout_containers(layout)
]
EVERY_PROXY = [
    pytest.param(container, id=f"{layout}-{container.pod.kind}") for layout in LAYOUTS for container in proxies(layout)
]
every_container = pytest.mark.parametrize("container", EVERY_CONTAINER)
every_proxy = pytest.mark.parametrize("container", EVERY_PROXY)


# The rendered manifests


def test_exactly_the_layouts_are_rendered() -> None:
    assert {path.stem for path in RENDERED.iterdir()} == {*manifests.CHARTED, *manifests.OVERLAYS}


@with_kubectl
@pytest.mark.parametrize("overlay", manifests.OVERLAYS)
def test_rendered_overlays_match_their_source(overlay: str) -> None:
    fresh = manifests.read(manifests.render(manifests.source(overlay)))
    # `python -m tests.manifests` renders them again.
    assert manifests.in_order(manifests.documents(overlay)) == manifests.in_order(fresh)


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_kustomization_begins_with_its_purpose(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert not yaml.safe_load(text).keys() - {"apiVersion", "kind", "namespace", "resources", "components", "patches"}


def test_every_layout_and_component_is_explained() -> None:
    explained = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    components = [folder.name for folder in (MANIFESTS / "components").iterdir()]
    assert [name for name in [*manifests.CHARTED, *LAYOUTS, *components] if f"`{name}`" not in explained] == []


# The Kubernetes API


# Those of the chart: tests/unit/test_chart.py.
@pytest.mark.parametrize("overlay", manifests.OVERLAYS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid_for_the_api(overlay: str, version: str) -> None:
    for document in manifests.documents(overlay):
        assert kubernetes_validate.validate(document, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("field", "value"), [("restartPolicies", "Always"), ("restartPolicy", 1), ("startupProbe", {"httpGet": {}})]
)
def test_validation_rejects_an_invalid_document(version: str, field: str, value: object) -> None:
    (document,) = manifests.documents("sidecar")
    spoilt = copy.deepcopy(document)
    spoilt["spec"]["template"]["spec"]["initContainers"][0][field] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, version, strict=True)


def test_pod_monitor_selects_every_proxy_and_its_metrics() -> None:
    (monitor,) = [found for found in manifests.documents("node-monitoring") if found["kind"] == "PodMonitor"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor) == {"apiVersion", "kind", "metadata", "spec"}
    spec = monitor["spec"]
    # The fields of monitoring.coreos.com/v1 PodMonitorSpec and PodMetricsEndpoint that are in use.
    assert set(spec) == {"namespaceSelector", "selector", "podTargetLabels", "podMetricsEndpoints"}
    assert spec["namespaceSelector"] == {"any": True}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert set(endpoint) == {"port", "path", "interval"}
    assert endpoint["path"] == "/-/metrics"
    assert re.fullmatch(r"[1-9][0-9]*s", endpoint["interval"])
    (expression,) = spec["selector"]["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("imdsproxy", "In")
    for layout in LAYOUTS:
        for container in proxies(layout):
            assert container.pod.labels["imdsproxy"] in expression["values"], layout
            assert container.port(endpoint["port"])
    assert all(label in manifests.pod("node").labels for label in spec["podTargetLabels"])


@every_layout
def test_references_between_documents_exist(layout: str) -> None:
    found = manifests.documents(layout)
    names = {(document["kind"], document["metadata"]["name"]) for document in found}
    assert len(names) == len(found)
    for document in found:
        if "selector" in document.get("spec", {}):
            assert selects(document, layout), document["kind"]
    pod = manifests.pod(layout)
    for kind, field in (("ServiceAccount", "serviceAccountName"), ("PriorityClass", "priorityClassName")):
        assert field not in pod.spec or (kind, pod.spec[field]) in names
    if ("Namespace", "imdsproxy") in names:
        spaced = [document for document in found if document["kind"] not in OF_THE_CLUSTER]
        assert {document["metadata"].get("namespace") for document in spaced} == {"imdsproxy"}


def selects(document: Document, layout: str) -> bool:
    """Whether the one pod of the layout is among those that the document speaks of."""
    labels = manifests.pod(layout).labels
    if "matchLabels" in document["spec"]["selector"]:
        return bool(document["spec"]["selector"]["matchLabels"].items() <= labels.items())
    (expression,) = document["spec"]["selector"]["matchExpressions"]
    return labels[expression["key"]] in expression["values"]


@every_layout
def test_network_policies_match_the_pods_and_their_ports(layout: str) -> None:
    pod = manifests.pod(layout)
    policies = [document for document in manifests.documents(layout) if document["kind"] == "NetworkPolicy"]
    assert not (policies and pod.spec.get("hostNetwork")), "no policy applies to a pod with hostNetwork"
    for policy in policies:
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod.labels.items()
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                assert pod.container("imdsproxy").port(port["port"])


def test_network_policy_allows_the_daemon_imds_only() -> None:
    (policy,) = [found for found in manifests.documents("node") if found["kind"] == "NetworkPolicy"]
    (rule,) = policy["spec"]["egress"]
    (upstream,) = {
        container.env({"status.podIP": "10.0.0.1"}).get("IMDSPROXY_UPSTREAM") for container in proxies("node")
    }
    address = parse_upstream(upstream or Settings().upstream)
    assert rule["to"] == [{"ipBlock": {"cidr": f"{address.host}/32"}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": address.port}]


# The proxy's settings


@every_proxy
@pytest.mark.parametrize("address", ["10.244.0.2", "fd00::2"])
def test_every_setting_in_a_manifest_is_valid(container: Container, address: str) -> None:
    environment = container.env({"status.podIP": address})
    loaded = load(environ=environment)
    ours = {name for name in environment if name.startswith("IMDSPROXY_")}
    assert {f"IMDSPROXY_{field.upper()}" for field, source in loaded.sources.items() if source != "default"} == ours
    assert loaded.settings.admin_host == address
    assert loaded.settings.host in {"127.0.0.1", address, NODE_ADDRESS}


@every_proxy
def test_probes_use_the_proxys_listeners(container: Container) -> None:
    settings = load(environ=container.env({"status.podIP": "10.244.0.2"})).settings
    assert container.probes.keys() == {"startupProbe", "livenessProbe", "readinessProbe"}
    for name, probe in container.probes.items():
        asked = probe["httpGet"]
        assert asked == {"path": "/-/ready" if name == "readinessProbe" else "/-/healthy", "port": "imdsproxy-admin"}
        assert container.port(asked["port"]) == settings.admin_port
    ports = {port["containerPort"] for port in container.fields["ports"]}
    assert ports <= {settings.port, settings.admin_port}
    for port in container.fields["ports"]:
        of_the_node = container.pod.spec.get("hostNetwork", False)
        assert port.get("hostPort") == (port["containerPort"] if of_the_node else None)
        assert port.get("hostIP") == (settings.host if of_the_node and port["name"] == "imdsproxy" else None)


@every_proxy
def test_every_file_setting_is_below_a_mount(container: Container) -> None:
    settings = load(environ=container.env({"status.podIP": "10.244.0.2"})).settings
    mounts = {mount["mountPath"]: mount for mount in container.fields.get("volumeMounts", [])}
    written = [path for path in (settings.uds, settings.budget_file, settings.handover_file) if path]
    read = [path for path in (settings.upstream_address.unix,) if path]
    assert {str(Path(path).parent) for path in written + read} == mounts.keys()
    for path in read + written:
        assert mounts[str(Path(path).parent)].get("readOnly", False) is (path in read)


@every_layout
def test_every_volume_is_mounted_and_every_mount_has_a_volume(layout: str) -> None:
    for pod in manifests.pods(manifests.documents(layout)):
        volumes = [volume["name"] for volume in pod.spec.get("volumes", [])]
        mounts = {mount["name"] for one in pod.containers for mount in one.fields.get("volumeMounts", [])}
        assert sorted(mounts) == volumes
        for volume in pod.spec.get("volumes", []):
            assert volume["hostPath"] == {"path": "/run/imdsproxy", "type": "DirectoryOrCreate"}


def test_socket_path_is_the_same_on_both_sides() -> None:
    (node,) = proxies("node")
    (sidecar,) = proxies("sidecar-chained")
    served = load(environ=node.env({"status.podIP": "10.0.0.1"})).settings
    asking = load(environ=sidecar.env({"status.podIP": "10.0.0.2"})).settings
    assert asking.upstream_address.unix == served.uds
    (sharing,) = proxies("sidecar-shared-budget")
    assert load(environ=sharing.env({"status.podIP": "10.0.0.2"})).settings.budget_file == served.budget_file


@every_layout
def test_termination_leaves_time_for_requests_under_way(layout: str) -> None:
    pod = manifests.pod(layout)
    assert pod.grace >= server._GRACE + 5


@every_layout
def test_exempt_user_is_the_proxys_user_and_not_the_images(layout: str) -> None:
    pod = manifests.pod(layout)
    redirects = [one for one in pod.containers if one.name == "imdsproxy-redirect"]
    flags = {flag for one in redirects for flag in one.fields["args"]}
    users = {one.security["runAsUser"] for one in proxies(layout)}
    exempt = {int(flag.removeprefix("--uid=")) for flag in flags if flag.startswith("--uid=")}
    if exempt:
        assert users == exempt == {REDIRECTED_USER}
        assert "--exclusive" in flags
        assert ("--node" in flags) is bool(pod.spec.get("hostNetwork"))
        others = [one for one in pod.containers if one.name != "imdsproxy"]
        assert all(one.security["runAsUser"] != REDIRECTED_USER for one in others)
    else:
        assert users <= ({0} if layout == "node-address" else {IMAGE_USER})


# Rights


@every_container
def test_containers_have_minimal_privileges(container: Container) -> None:
    needed = {
        "imdsproxy-redirect": ["NET_ADMIN"],
        "imdsproxy-redirect-end": ["NET_ADMIN"],
        "imdsproxy-directory": ["CHOWN"],
        "imdsproxy-address": ["NET_ADMIN"],
    }
    security = container.security
    assert security["readOnlyRootFilesystem"] is True
    if container.name == "imdsproxy-route-localnet":
        assert security["privileged"] is True
        return
    assert "privileged" not in security
    assert security["allowPrivilegeEscalation"] is False
    if container.name == "imdsproxy" and any(one.name == "imdsproxy-address" for one in container.pod.containers):
        # The node's network reserves port 80.
        assert container.capabilities == ["NET_BIND_SERVICE"]
        assert security["runAsUser"] == 0
        return
    assert container.capabilities == needed.get(container.name, [])
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    if container.name in needed:
        assert (security["runAsUser"], security["runAsGroup"], security["runAsNonRoot"]) == (0, 0, False)
        assert container in container.pod.init_containers
    else:
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0


@every_proxy
def test_proxy_has_the_group_of_its_files_and_an_api_token_only_to_watch_pods(container: Container) -> None:
    assert container.security["runAsGroup"] == PROXY_GROUP
    watches = "IMDSPROXY_PODS_OF_NODE" in container.env({"status.podIP": ""})
    if container.pod.kind == "DaemonSet":
        assert container.pod.spec["automountServiceAccountToken"] is watches
    else:
        assert not watches


@every_layout
def test_only_the_layout_that_watches_pods_has_rights_at_the_api_and_no_others(layout: str) -> None:
    found = {one["kind"]: one for one in manifests.documents(layout) if "rules" in one or "roleRef" in one}
    if not any("IMDSPROXY_PODS_OF_NODE" in one.env({"status.podIP": ""}) for one in proxies(layout)):
        assert found == {}
        return
    assert set(found) == {"ClusterRole", "ClusterRoleBinding"}
    assert found["ClusterRole"]["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    assert found["ClusterRoleBinding"]["roleRef"]["name"] == found["ClusterRole"]["metadata"]["name"]
    (account,) = [one for one in manifests.documents(layout) if one["kind"] == "ServiceAccount"]
    assert found["ClusterRoleBinding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": account["metadata"]["namespace"]}
    ]
    assert account["automountServiceAccountToken"] is False
    assert manifests.pod(layout).spec["serviceAccountName"] == account["metadata"]["name"]


def test_a_proxy_that_watches_pods_sees_their_addresses() -> None:
    for layout in LAYOUTS:
        for proxy in proxies(layout):
            if "IMDSPROXY_PODS_OF_NODE" in proxy.env({"status.podIP": ""}):
                assert proxy.pod.spec["hostNetwork"] is True
                (variable,) = [one for one in proxy.fields["env"] if one["name"] == "IMDSPROXY_PODS_OF_NODE"]
                assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}


@pytest.mark.parametrize("layout", ["sidecar", "job", "node-cilium"])
def test_restricted_layout_needs_no_privilege_of_its_pod(layout: str) -> None:
    """The restricted Pod Security Standard, rule by rule, as far as a Linux pod can break it."""
    pod = manifests.pod(layout)
    assert not pod.spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}
    volumes = {key for volume in pod.spec.get("volumes", []) for key in volume if key != "name"}
    assert volumes <= VOLUMES_OF_THE_RESTRICTED
    assert "sysctls" not in pod.spec.get("securityContext", {})
    for container in pod.containers:
        security = container.security
        assert not security.keys() & {"privileged", "procMount", "seLinuxOptions", "windowsOptions", "appArmorProfile"}
        assert security["allowPrivilegeEscalation"] is False
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] != 0
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"]["type"] in {"RuntimeDefault", "Localhost"}
        assert all("hostPort" not in port for port in container.fields.get("ports", []))
        assert all("host" not in probe["httpGet"] for probe in container.probes.values())


@every_container
def test_container_states_requests_and_limits(container: Container) -> None:
    resources = container.fields["resources"]
    for name in ("cpu", "memory"):
        assert quantity(resources["requests"][name]) <= quantity(resources["limits"][name])


@every_proxy
def test_limit_of_memory_is_above_the_worst_case_of_enough_connections(container: Container) -> None:
    """A sidecar serves one pod, the proxy of a node as many clients as there may be."""
    config = Settings().config()
    limit = int(quantity(container.fields["resources"]["limits"]["memory"]))
    connections = connections_within(limit, config.cache_max_bytes, config.max_body_bytes)
    assert connections >= (MOST_CONNECTIONS if container.pod.kind == "DaemonSet" else 900)


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([0-9]+)(m|Mi)?", text).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "m": 0.001, "Mi": 2**20}[unit]


@every_container
def test_images_are_those_of_the_dockerfile_in_this_version(container: Container) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert container.image in {f"imdsproxy:{version}", f"imdsproxy-redirect:{version}"}
    assert container.fields.get("imagePullPolicy", "IfNotPresent") == "IfNotPresent"
    # Where an image gives no command of its own, the manifest has to.
    image = manifests.image(container.image)
    assert container.fields.get("command") or image.entrypoint
    if container.image.startswith("imdsproxy:") and "runAsUser" not in container.security:
        assert image.user.partition(":")[0].isdigit()


def test_image_user_matches_the_dockerfile() -> None:
    assert manifests.image("imdsproxy:any").user == f"{IMAGE_USER}:{PROXY_GROUP}"
    assert manifests.image("imdsproxy:any").entrypoint == ["/opt/imdsproxy/bin/imdsproxy"]
    assert manifests.image("imdsproxy-redirect:any").entrypoint == [
        "/opt/imdsproxy/bin/imdsproxy",
        "redirect",
        "--load",
    ]


@pytest.mark.parametrize(
    ("layout", "labels"), [(layout, manifests.pod(layout).labels) for layout in LAYOUTS if layout.startswith("node")]
)
def test_versions_on_labels_are_the_projects(layout: str, labels: dict[str, str]) -> None:
    assert (
        manifests.pod(layout)
        .container(manifests.pod(layout).own_containers[0].name)
        .image.endswith(f":{labels['app.kubernetes.io/version']}")
    )


# Components on every kind of workload


@pytest.mark.parametrize("component", ["sidecar", "redirect", "shared-budget", "chained", "no-tokens"])
def test_three_forms_of_a_component_are_equal(component: str) -> None:
    shapes = [read_patch(component, shape) for shape in SHAPES]
    assert shapes[0] == shapes[1] == shapes[2]


def read_patch(component: str, shape: str) -> tuple[Any, Any]:
    (document,) = manifests.read((MANIFESTS / "components" / component / shape).read_text(encoding="utf-8"))
    spec = document
    while "initContainers" not in spec.get("spec", {}):
        spec = spec["spec"].get("jobTemplate") or spec["spec"]["template"]
    return spec["spec"], spec.get("metadata", {}).get("labels")


def workload(kind: str, inits: bool = True) -> Document:
    """Return a minimal document of this kind, with two init containers or none."""
    spec: Document = {"containers": [{"name": "app", "image": "app:1"}]}
    if inits:
        spec["initContainers"] = [{"name": name, "image": "app:1"} for name in ("first", "second")]
    if kind in {"Job", "CronJob"}:
        spec["restartPolicy"] = "Never"
    template = {"metadata": {"labels": {"app": "app"}}, "spec": spec}
    selector = {"selector": {"matchLabels": {"app": "app"}}}
    version, body = {
        "Pod": ("v1", spec),
        "Job": ("batch/v1", {"template": template}),
        "CronJob": ("batch/v1", {"schedule": "@daily", "jobTemplate": {"spec": {"template": template}}}),
        "StatefulSet": ("apps/v1", {**selector, "serviceName": "app", "template": template}),
    }.get(kind, ("apps/v1", {**selector, "template": template}))
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "app"}, "spec": body}


def rendered_with(folder: Path, found: list[Document], *components: str) -> Iterator[Pod]:
    (folder / "documents.yaml").write_text(yaml.safe_dump_all(found), encoding="utf-8")
    places = [os.path.relpath(MANIFESTS / "components" / name, folder) for name in components]
    kustomization = {"resources": ["documents.yaml"], "components": places}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    documents = manifests.read(manifests.render(folder))
    for document in documents:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    return manifests.pods(documents)


@with_kubectl
@pytest.mark.parametrize(
    ("components", "order"),
    [
        (["sidecar"], ["imdsproxy"]),
        (["sidecar", "redirect"], ["imdsproxy-redirect", "imdsproxy"]),
        (["sidecar", "shared-budget"], ["imdsproxy-directory", "imdsproxy"]),
        (["sidecar", "chained"], ["imdsproxy"]),
        (["sidecar", "no-tokens"], ["imdsproxy"]),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("inits", [True, False], ids=["with init containers", "without"])
def test_every_kind_of_workload_gets_the_sidecar_before_its_own(
    components: list[str], order: list[str], inits: bool, tmp_path: Path
) -> None:
    found = {pod.kind: pod for pod in rendered_with(tmp_path, [workload(kind, inits) for kind in KINDS], *components)}
    assert found.keys() == set(KINDS)
    own = ["first", "second"] if inits else []
    for pod in found.values():
        assert [container.name for container in pod.init_containers] == [*order, *own]
        assert [container.name for container in pod.own_containers] == ["app"]
        assert pod.labels["imdsproxy"] == "sidecar"
        assert pod.container("imdsproxy").stays


@with_kubectl
def test_combined_components_keep_the_sidecar_before_the_application(tmp_path: Path) -> None:
    (pod,) = rendered_with(tmp_path, [workload("Deployment")], "sidecar", "no-tokens", "redirect", "shared-budget")
    names = [container.name for container in pod.init_containers]
    assert set(names[:3]) == {"imdsproxy", "imdsproxy-redirect", "imdsproxy-directory"}
    assert names.index("imdsproxy-directory") < names.index("imdsproxy")
    assert names[3:] == ["first", "second"]
    assert pod.container("imdsproxy").security["runAsUser"] == REDIRECTED_USER
    assert pod.container("imdsproxy").env({"status.podIP": ""})["IMDSPROXY_DENY"] == "/metadata/identity"


@with_kubectl
def test_daemon_gets_no_sidecar(tmp_path: Path) -> None:
    node = [document for document in manifests.documents("node") if document["kind"] == "DaemonSet"]
    pods = rendered_with(tmp_path, [*node, workload("DaemonSet")], "sidecar")
    found = {pod.name: pod for pod in pods}
    assert [one.name for one in found["app"].init_containers] == ["imdsproxy", "first", "second"]
    assert [one.name for one in found["imdsproxy"].init_containers] == ["imdsproxy-directory"]


@with_kubectl
def test_each_image_is_replaced_by_one_entry(tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text((RENDERED / "node-redirect.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    kustomization = {
        "resources": ["node.yaml"],
        "images": [
            {"name": name, "newName": f"registry.example/{name}", "newTag": "2"}
            for name in ("imdsproxy", "imdsproxy-redirect")
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    (pod,) = manifests.pods(manifests.read(manifests.render(tmp_path)))
    assert {container.image for container in pod.containers} == {
        "registry.example/imdsproxy:2",
        "registry.example/imdsproxy-redirect:2",
    }
