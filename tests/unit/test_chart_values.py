"""The Helm chart's values: each with a comment and a place in the schema, and those that documents name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from imdsproxy.settings.load import load
from imdsproxy.settings.model import Settings
from tests import chart
from tests.kit import ROOT
from tests.unit.test_chart import KINDS_OF_LAYOUT, OPTIONS, every_kind, proxy

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.no_cover,
    pytest.mark.skipif(not chart.AVAILABLE, reason="helm-python-sdk has no wheel for this machine"),
]


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    schema = json.loads((chart.CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values.keys() == schema["properties"].keys() - {"global"}
    for name, value in values.items():
        known = schema["properties"][name]
        known = schema["definitions"]["image"] if "$ref" in known else known
        if known.get("additionalProperties") is False:
            assert value.keys() == known["properties"].keys(), name


def test_every_value_is_explained() -> None:
    text = (chart.CHART / "values.yaml").read_text(encoding="utf-8")
    unexplained = re.findall(r"(?:\n\n|^)(\w+):", text)
    # redirectImage follows image; these three are Kubernetes's own.
    assert set(unexplained) == {"image", "address", "cilium", "redirect", "socket", "pods", "priorityClass"} | {
        "podAnnotations",
        "networkPolicy",
        "monitoring",
        "namespace",
    }


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"layout": "sidecar"}, "layout"),
        ({"layuot": "socket"}, "layuot"),
        ({"address": {"ip": "169.254.169.254"}}, r"address\.ip=169\.254\.169\.254 is none of 169\.254\.20\.1 to "),
        ({"address": {"ip": "10.0.0.1"}}, r"address\.ip=10\.0\.0\.1 is none of"),
        ({"address": {"port": 8256}}, r"address\.port=8256 is the port of the probes"),
        ({"settings": {"HOST": "0.0.0.0"}}, r"settings\.HOST cannot be set, because the layout decides it"),
        ({"settings": {"CLIENTS": "10.0.0.0/8"}}, r"settings\.CLIENTS cannot be set; set the value clients"),
        ({"settings": {"IMDSPROXY_derive": "true"}}, "IMDSPROXY_derive(.|\n)*value must be one of .*'DERIVE'"),
        ({"layout": "socket", "pods": {"watch": True}}, r"pods\.watch=true has no effect with layout=socket"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"nodeSelector": {"kubernetes.io/os": "windows"}}, "os"),
        ({"podLabels": {"imdsproxy": "sidecar"}}, "podLabels cannot have imdsproxy"),
        ({"monitoring": {"group": "example.com"}}, "group"),
        ({"injection": {"apiVersion": "v1alpha1"}}, "apiVersion"),
        ({"image": {"digest": "latest"}}, "digest"),
    ],
    ids=str,
)
def test_schema_refuses_a_wrong_value_and_names_it(values: dict[str, Any], word: str) -> None:
    with pytest.raises(chart.RefusedError, match=word):
        chart.render(values)


def test_schema_knows_every_setting() -> None:
    schema = json.loads((chart.CHART / "values.schema.json").read_text(encoding="utf-8"))
    known = schema["properties"]["settings"]["propertyNames"]["enum"]
    assert known == [name.upper() for name in Settings.model_fields]


def is_refused(setting: str) -> bool:
    try:
        chart.parts({"settings": {setting: "1"}})
    except chart.RefusedError as error:
        return f"settings.{setting} cannot be set" in str(error)
    return False


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (33554432, "33554432"),  # a number of a values file, which Helm reads as 3.3554432e+07
        (8, "8"),
        (0.5, "0.5"),
        (True, "true"),
        ("a=1", "a=1"),
    ],
)
def test_setting_is_written_as_it_was_given(given: object, written: str) -> None:
    env = proxy({"settings": {"TTL": given}}).env({"status.podIP": "10.0.0.1"})
    assert env["IMDSPROXY_TTL"] == written


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "Every program that reaches the proxy gets the tokens of its node's identities"),
        ({"tokens": False}, "No program gets an access token from the proxy."),
        ({"access": 'default = "deny"\n'}, "The rules of the value access say which program gets which token"),
        ({"layout": "none"}, "Nothing was installed: layout is none, and injection.enabled is false."),
    ],
    ids=str,
)
def test_notes_say_who_gets_tokens(values: dict[str, Any], sentence: str) -> None:
    notes = chart.notes(values)
    assert sentence in notes
    assert sum(word in notes for word in ("Every program", "No program", "The rules of", "Nothing was")) == 1


def test_settings_that_the_chart_decides_are_refused_and_no_others() -> None:
    refused = {name.upper() for name in Settings.model_fields if is_refused(name.upper())}
    for layout in KINDS_OF_LAYOUT:
        values = {"layout": layout, **OPTIONS, "tokens": False}
        values |= {} if layout == "socket" else {"pods": {"watch": True}}
        written = {name.removeprefix("IMDSPROXY_") for name in proxy(values).env({"status.podIP": "10.0.0.1"})}
        assert written - refused == {"DERIVE", "LOG_LEVEL", "LOG_FORMAT"}, layout


@every_kind
def test_every_setting_of_the_options_is_valid(layout: str) -> None:
    environment = proxy({"layout": layout, **OPTIONS}).env({"status.podIP": "10.0.0.1"})
    environment.pop("IMDSPROXY_ACCESS_FILE")
    settings = load(environ=environment).settings
    assert settings.derive
    assert [str(found) for found in settings.clients] == ["10.244.0.0/16", "10.0.0.4/32"]


# As `helm --set` takes them: in commands, and in sentences between backticks.
_GIVEN = re.compile(r"(--set |`)((?:[a-z]\w*(?:\.\w+)*=[^\s`,]+,?)+)")


def given(text: str) -> dict[str, Any]:
    """Return what `--set` makes of a text such as `layout=address,image.tag=2`."""
    found: dict[str, Any] = {}
    for assignment in re.findall(r"[a-z][\w.]*=(?:\{[^}]*\}|[^,]+)", text):
        name, _, value = assignment.partition("=")
        *parents, last = name.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = (
            value[1:-1].split(",") if value.startswith("{") else {"true": True, "false": False}.get(value, value)
        )
    return found


VALUES: dict[str, Any] = yaml.safe_load((chart.CHART / "values.yaml").read_text(encoding="utf-8"))
DOCUMENTED = sorted(
    {
        text.strip(",")
        for page in ("aks", "kubernetes", "monitoring")
        for mark, text in _GIVEN.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))
        # In a sentence, other things look like values: the labels of a metric.
        if mark != "`" or re.split(r"[.=]", text)[0] in VALUES
    }
)


@pytest.mark.parametrize("text", DOCUMENTED)
def test_values_of_the_documents_are_values_of_the_chart(text: str) -> None:
    values = given(text)
    assert values
    for name, value in values.items():
        if isinstance(value, dict) and name not in {"settings", "nodeSelector"}:
            assert value.keys() <= VALUES[name].keys()
    assert chart.parts(values)


def test_documents_name_the_layouts_and_more() -> None:
    assert any(text.startswith("layout=address,") for text in DOCUMENTED)
    assert len(DOCUMENTED) > 12
