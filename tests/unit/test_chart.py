"""The Helm chart: linted and rendered by Helm, valid for the API, and the one source of the nodes' manifests."""

from __future__ import annotations

import ast
import functools
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from imdsproxy.settings.load import load
from tests import chart, custom_resources, manifests
from tests.kit import ROOT
from tests.manifests import CHARTED, NODES, RENDERED, Container, Document, Pod

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.no_cover,
    pytest.mark.skipif(not chart.AVAILABLE, reason="helm-python-sdk has no wheel for this machine"),
]

# The oldest Kubernetes of AKS's long-term support with native sidecars, and the newest of which there are schemas.
VERSIONS = ("1.29", kubernetes_validate.latest_version().rpartition(".")[0])
POLICIES = {"v1beta1": ("1.34", "1.35"), "v1": ("1.36", VERSIONS[-1])}
"""Of the admission policy: the versions of the API, and the first and last Kubernetes to take it from."""
OPTIONS: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}],
    "settings": {"DERIVE": "true", "LOG_LEVEL": "debug"},
    "clients": ["10.244.0.0/16", "10.0.0.4"],
    "access": 'default = "deny"\n\n[[rule]]\nname = "facts"\nanyone = true\nallow = ["/metadata/instance"]\n',
    "priorityClass": {"create": True},
    "nodeSelector": {"agentpool": "work"},
    "nodeExpressions": [{"key": "spot", "operator": "DoesNotExist"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "platform"},
    "image": {"repository": "registry.example/imdsproxy", "digest": f"sha256:{'0' * 64}"},
    "networkPolicy": {"prometheusNamespace": "kube-system"},
    "monitoring": {
        "group": "azmonitoring.coreos.com",
        "podMonitor": True,
        "serviceMonitor": True,
        "labels": {"release": "prometheus"},
    },
    "namespace": {"create": True},
}
"""Nearly every value that is off by default."""
KINDS_OF_LAYOUT = ("address", "cilium", "redirect", "socket")
VARIANTS: dict[str, dict[str, Any]] = {
    **{layout: manifests.values(layout) for layout in CHARTED},
    **{f"{layout} with options": {"layout": layout, **OPTIONS} for layout in KINDS_OF_LAYOUT},
    "cilium with clients": {"layout": "cilium", "cilium": {"clients": [{"podSelector": {}}]}, "pods": {"watch": True}},
    "address with a high port": {"layout": "address", "address": {"ip": "169.254.20.77", "port": 8254}},
    "injection into older clusters": {"layout": "none", "injection": {"enabled": True, "apiVersion": "v1beta1"}},
    "no values": {},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_node = pytest.mark.parametrize("layout", NODES)
every_kind = pytest.mark.parametrize("layout", KINDS_OF_LAYOUT)


def documents(values: dict[str, Any]) -> list[Document]:
    return manifests.read(chart.render(values))


def of_kind(kind: str, values: dict[str, Any]) -> list[Document]:
    return [document for document in documents(values) if document["kind"] == kind]


def pod(values: dict[str, Any]) -> Pod:
    (found,) = manifests.pods(documents(values))
    return found


def proxy(values: dict[str, Any]) -> Container:
    return pod(values).container("imdsproxy")


# Helm's own view


@every_variant
def test_helm_has_nothing_against_the_chart(variant: str) -> None:
    assert chart.lint(VARIANTS[variant]) == []


def test_lint_finds_a_fault() -> None:
    assert chart.lint({"layout": "sidecar"}) != []


def test_archive_renders_as_the_folder_does(tmp_path: Path) -> None:
    archive = chart.package(tmp_path)
    assert archive.name == f"imdsproxy-{_version()}.tgz"
    assert chart.parts({"layout": "cilium"}, archive) == chart.parts({"layout": "cilium"})


def test_chart_has_the_version_of_the_project() -> None:
    head = yaml.safe_load((chart.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (head["version"], head["appVersion"]) == (_version(), _version())


def _version() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


# One source


@pytest.mark.parametrize("layout", CHARTED)
def test_rendered_file_is_what_the_chart_renders(layout: str) -> None:
    # `python -m tests.manifests` renders them again.
    assert (RENDERED / f"{layout}.yaml").read_text(encoding="utf-8") == manifests.file_of(layout)


@pytest.mark.skipif(manifests.kubectl() is None, reason="kubectl is not installed")
@every_node
def test_kustomize_and_helm_make_the_same_objects(layout: str, tmp_path: Path) -> None:
    """With images of one's own. The rule: only the two labels of Helm may differ (`chart.plain`)."""
    images = [("imdsproxy", "image"), ("imdsproxy-redirect", "redirectImage")]
    (tmp_path / "node.yaml").write_text((RENDERED / f"{layout}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    kustomization = {
        "resources": ["node.yaml"],
        "images": [{"name": name, "newName": f"registry.example/{name}", "newTag": "2"} for name, _ in images],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    by_kustomize = manifests.read(manifests.render(tmp_path))
    own = {value: {"repository": f"registry.example/{name}", "tag": "2"} for name, value in images}
    by_helm = manifests.read(chart.plain(chart.render({**manifests.values(layout), **own})))
    assert manifests.in_order(by_kustomize) == manifests.in_order(by_helm)


def test_labels_of_helm_are_on_every_object_of_the_chart_and_on_none_of_the_files() -> None:
    ours = {"helm.sh/chart": f"imdsproxy-{_version()}", "app.kubernetes.io/managed-by": "Helm"}
    for values in VARIANTS.values():
        for document in documents(values):
            assert document["metadata"]["labels"].items() >= ours.items()
    for layout in CHARTED:
        assert all(not document["metadata"]["labels"].keys() & ours.keys() for document in manifests.documents(layout))


# The API


def kubernetes_of(document: Document) -> tuple[str, ...]:
    if not document["kind"].startswith("MutatingAdmissionPolicy"):
        return VERSIONS
    return POLICIES[document["apiVersion"].rpartition("/")[2]]


@functools.cache
def different() -> dict[str, tuple[str, Document]]:
    """Return each object of all variants once, by its text, with a variant that has it."""
    return {
        json.dumps(document, sort_keys=True): (variant, document)
        for variant, values in VARIANTS.items()
        for document in documents(values)
    }


@pytest.mark.parametrize("version", sorted({*VERSIONS, *(one for found in POLICIES.values() for one in found)}))
def test_every_object_is_valid_for_the_oldest_and_the_newest_api(version: str) -> None:
    seen = set()
    for variant, document in different().values():
        if document["kind"] not in custom_resources.KINDS and version in kubernetes_of(document):
            seen.add(document["kind"])
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{variant}: {document['kind']}: {error}")
    assert {"MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"} <= seen or {"DaemonSet", "Namespace"} <= seen


def test_every_custom_resource_is_as_its_documentation_has_it() -> None:
    seen = set()
    for _, document in different().values():
        if document["kind"] in custom_resources.KINDS:
            custom_resources.validate(document)
            seen.add((document["kind"], document["apiVersion"]))
    assert len(seen) == 4


@pytest.mark.parametrize("kind", sorted(custom_resources.KINDS))
@pytest.mark.parametrize("spoilt", [{"selektor": {}}, {"apiVersion": "example.com/v1"}])
def test_custom_resource_with_a_fault_is_refused(kind: str, spoilt: dict[str, Any]) -> None:
    (document,) = of_kind(kind, VARIANTS["cilium with options"])
    custom_resources.validate(document)
    place = document if "apiVersion" in spoilt else document["spec"]
    with pytest.raises(jsonschema.ValidationError):
        custom_resources.validate(place.update(spoilt) or document)


# What a person reads


@every_variant
def test_notes_say_how_to_reach_and_to_verify(variant: str) -> None:
    values = VARIANTS[variant]
    notes = chart.notes(values)
    layout, remove = values.get("layout", "address"), values.get("redirect", {}).get("remove", False)
    assert "erify" in notes or remove
    if layout == "address":
        settings = load(environ=proxy(values).env({"status.podIP": "10.0.0.1"})).settings if len(values) < 5 else None
        url = f"http://{settings.host}" if settings else "http://169.254.20.10"
        url += f":{settings.port}" if settings and settings.port != 80 else ""
        assert f"value: {url}\n" in notes
    if layout == "redirect":
        assert "redirect.remove=true" in notes or remove
    assert ("Windows nodes" in notes) is (layout != "none")


@pytest.mark.parametrize("layout", ["address", "cilium", "redirect"])
def test_verification_is_a_pod_without_privilege_that_nothing_takes_for_a_proxy(layout: str) -> None:
    values = {"layout": layout, "name": "other", **OPTIONS}
    (document,) = manifests.read(chart.verification(values))
    for version in VERSIONS:
        assert kubernetes_validate.validate(document, version, strict=True) == version
    (found,) = manifests.pods([document])
    assert not found.labels.items() & pod(values).labels.items() - {("app.kubernetes.io/version", _version())}
    (container,) = found.containers
    assert container.capabilities == []
    assert container.security["runAsUser"] == 65532
    assert container.image == proxy(values).image
    _, flags, program = container.fields["command"]
    ast.parse(program)
    assert flags == "-uISc"
    assert ("http://169.254.20.10/" in program) is (layout == "address")
    assert ("http://169.254.169.254/" in program) is (layout != "address")
    assert "helm test imdsproxy -n imdsproxy" in chart.notes(values)


def test_verification_names_the_port_that_programs_are_told() -> None:
    values = VARIANTS["address with a high port"]
    assert "http://169.254.20.77:8254/metadata" in chart.verification(values)
    assert "value: http://169.254.20.77:8254\n" in chart.notes(values)
