"""The admission policy that adds a sidecar, applied to pods: the same sidecar as the component's, in the same place."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests import chart, manifests
from tests.manifests import MANIFESTS, Document

admission = pytest.importorskip("tests.admission", reason="cel-expr-python has no wheel for this machine")
pytestmark = [
    pytest.mark.any_python,
    pytest.mark.no_cover,
    pytest.mark.skipif(not chart.AVAILABLE, reason="helm-python-sdk has no wheel for this machine"),
]

VARIABLE = {"name": "AZURE_POD_IDENTITY_AUTHORITY_HOST", "value": "http://127.0.0.1:8254"}


def policy(**injection: Any) -> Document:
    values = {"layout": "none", "injection": {"enabled": True, "apiVersion": "v1", **injection}}
    return next(one for one in manifests.read(chart.render(values)) if one["kind"] == "MutatingAdmissionPolicy")


def pod(*inits: str, **spec: Any) -> Document:
    found: Document = {"containers": [{"name": "app", "image": "app:1"}], **spec}
    if inits:
        found["initContainers"] = [{"name": name, "image": "app:1"} for name in inits]
    labels = {"imdsproxy": "sidecar"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "labels": labels}, "spec": found}


def by_name(template: Document) -> Document:
    """Return a pod whose variables are ordered by name: a component and the policy add them at different ends."""
    found = copy.deepcopy(template)
    for container in (*found["spec"].get("initContainers", []), *found["spec"]["containers"]):
        container.get("env", []).sort(key=lambda variable: variable["name"])
    return found


def test_policy_adds_what_the_component_adds() -> None:
    """To the example's pod: the overlay `sidecar` adds the component and the variable to it."""
    text = (MANIFESTS / "examples" / "deployment" / "deployment.yaml").read_text(encoding="utf-8")
    template = yaml.safe_load(text)["spec"]["template"]
    template["metadata"]["labels"]["imdsproxy"] = "sidecar"
    (component,) = manifests.documents("sidecar")
    assert by_name(admission.admitted(policy(), template)) == by_name(component["spec"]["template"])


@pytest.mark.parametrize("inits", [(), ("first", "second")])
def test_sidecar_is_before_the_pods_own_and_the_pod_valid(inits: tuple[str, ...]) -> None:
    found = admission.admitted(policy(), pod(*inits))
    assert [one["name"] for one in found["spec"]["initContainers"]] == ["imdsproxy", *inits]
    assert found["spec"]["initContainers"][0]["restartPolicy"] == "Always"
    for container in (*found["spec"]["initContainers"][1:], *found["spec"]["containers"]):
        assert container["env"] == [VARIABLE]
    kubernetes_validate.validate(found, "1.36", strict=True)


def test_variable_of_the_pods_own_is_kept() -> None:
    mine = {"name": VARIABLE["name"], "value": "http://mine"}
    other = {"name": "OTHER", "value": "1"}
    containers = [{"name": "a", "env": [mine]}, {"name": "b", "env": [other]}, {"name": "c"}]
    found = admission.admitted(policy(), pod(containers=containers))["spec"]["containers"]
    assert [one["env"] for one in found] == [[mine], [other, VARIABLE], [VARIABLE]]


@pytest.mark.parametrize(
    "given",
    [pod("imdsproxy"), pod(hostNetwork=True), pod(os={"name": "windows"})],
    ids=["has a sidecar", "hostNetwork", "Windows"],
)
def test_pod_is_left_as_it_is(given: Document) -> None:
    assert admission.admitted(policy(), given) == given
    for other in (pod(hostNetwork=False), pod(os={"name": "linux"})):
        assert admission.admitted(policy(), other) != other


def test_second_application_changes_nothing() -> None:
    once = admission.admitted(policy(), pod("first"))
    assert admission.admitted(policy(), once) == once


def test_sidecars_get_their_answers_where_they_are_told() -> None:
    found = admission.admitted(policy(upstream="http://169.254.20.10", env={VARIABLE["name"]: None}), pod())
    environment = {one["name"]: one.get("value") for one in found["spec"]["initContainers"][0]["env"]}
    assert environment["IMDSPROXY_UPSTREAM"] == "http://169.254.20.10"
    assert "env" not in found["spec"]["containers"][0]


def test_values_with_quotes_stay_values() -> None:
    value = "a\"'\\b\n${x} }} é"
    found = admission.admitted(policy(env={VARIABLE["name"]: None, "A": value}), pod())
    assert found["spec"]["containers"][0]["env"] == [{"name": "A", "value": value}]


def test_policy_concerns_new_pods_with_the_label_alone() -> None:
    constraints = policy()["spec"]["matchConstraints"]
    assert constraints["objectSelector"] == {"matchLabels": {"imdsproxy": "sidecar"}}
    (rule,) = constraints["resourceRules"]
    assert (rule["apiGroups"], rule["resources"], rule["operations"]) == ([""], ["pods"], ["CREATE"])


def test_binding_names_the_policy_and_its_namespaces() -> None:
    selector = {"matchLabels": {"team": "a"}}
    values = {"injection": {"enabled": True, "namespaceSelector": selector}, "name": "other"}
    found = {one["kind"]: one for one in manifests.read(chart.render(values))}
    binding = found["MutatingAdmissionPolicyBinding"]
    assert binding["spec"] == {
        "policyName": found["MutatingAdmissionPolicy"]["metadata"]["name"],
        "matchResources": {"namespaceSelector": selector},
    }
    assert binding["apiVersion"] == found["MutatingAdmissionPolicy"]["apiVersion"]


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ('Object{spec: Object.spec{containers: [Object.spec.containers{nmae: "a"}]}}', "nmae"),
        ("Object{spec: Object.spec{containers: [Object.spec.containers{name: 1}]}}", "name"),
        ('Object{spec: Object.spec{containers: [Object.spec.initContainers{name: "a"}]}}', "containers"),
        ("Object{spec: Object.spec{volumez: []}}", "volumez"),
    ],
)
def test_expression_that_the_api_has_no_place_for_is_refused(expression: str, complaint: str) -> None:
    spoilt = policy()
    spoilt["spec"]["mutations"] = [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}
    ]
    with pytest.raises(Exception, match=complaint):
        admission.admitted(spoilt, pod())
