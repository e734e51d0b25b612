from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from imdsproxy.emulator.samples import sample_instance
from imdsproxy.emulator.vm.loading import load, read
from imdsproxy.emulator.vm.model import VmError
from imdsproxy.emulator.vm.presets import linux, preset
from imdsproxy.emulator.windows_sample import windows_instance

TOML = """
preset = "spot"
token-life = 600
versions = [2021-02-01, "2021-03-01"]
user-data = "#!/bin/sh"

[compute]
location = "norwayeast"
platformFaultDomain = 2
tags = { env = "test", cost = 7 }

[compute.securityProfile]
secureBootEnabled = false

[[identities]]
role = "system"

[[identities]]
name = "web"
client-id = "c"
"""
YAML = """
preset: spot
token-life: 600
versions: [2021-02-01, "2021-03-01"]
user-data: "#!/bin/sh"
compute:
  location: norwayeast
  platformFaultDomain: 2
  tags: {env: test, cost: 7}
  securityProfile: {secureBootEnabled: false}
identities: [system, {name: web, client-id: c}]
"""


def written(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_toml_and_yaml_describe_the_same_machine(tmp_path: Path) -> None:
    machine = load(written(tmp_path, "vm.toml", TOML))
    assert load(written(tmp_path, "vm.yaml", YAML)) == machine
    assert (machine.compute["priority"], machine.compute["location"]) == ("Spot", "norwayeast")
    assert (machine.compute["platformFaultDomain"], machine.compute["tags"]) == ("2", "env:test;cost:7")
    assert machine.compute["securityProfile"] == {
        "encryptionAtHost": "false",
        "secureBootEnabled": "false",
        "securityType": "TrustedLaunch",
        "virtualTpmEnabled": "true",
    }
    assert (machine.token_life, machine.versions) == (600.0, ("2021-02-01", "2021-03-01"))
    assert [identity.name for identity in machine.identities] == ["examplevmname", "web"]


def test_description_can_be_json(tmp_path: Path) -> None:
    machine = read(written(tmp_path, "vm.json", '{"preset":"windows","compute":{"location":"eastus"}}'))
    assert (machine.compute["location"], machine.compute["offer"]) == ("eastus", "Windows")


def test_captured_document_is_taken_as_it_is(tmp_path: Path) -> None:
    document = windows_instance()
    document["compute"]["newerField"] = 7
    machine = read(written(tmp_path, "vm.json", b"\xef\xbb\xbf" + json.dumps(document).encode()))
    assert machine.instance == document
    assert machine.load_balancer is None
    only_compute = read(written(tmp_path, "compute.json", json.dumps(document["compute"])))
    assert only_compute.instance == {"compute": document["compute"], "network": sample_instance()["network"]}
    assert read(written(tmp_path, "vm.json", json.dumps(document)), "windows").versions == preset("windows").versions


def test_flags_take_precedence_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "vm.toml", TOML)
    machine = load(file, "confidential", ["compute.location=x", "compute.location=y"])
    assert (machine.compute["priority"], machine.compute["location"]) == ("Regular", "y")
    assert load() == linux()
    assert load(base="windows") == preset("windows")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("vm.toml", "a = \n", "is not TOML: Invalid value (at line 1, column 5)"),
        ("vm.json", '{\n"a":}', "is not JSON: Expecting value (at line 2, column 5)"),
        ("vm.json", "[" * 100_000, "is not JSON that can be read: it is nested too deeply"),
        ("vm.yaml", "a: [\n", "is not YAML: "),
        ("vm.yml", "- 1", "the file does not hold named fields"),
        ("vm.yaml", "1: 2", "the file does not hold named fields"),
        ("vm.ini", "", ".ini says no format; name the file .toml, .yaml or .json"),
        ("vm", "", "no ending says no format"),
        ("vm.toml", b"\xff", "is not UTF-8 at byte 0; save it as UTF-8"),
        ("vm.toml", b"#" * (4 * 1024 * 1024 + 1), "has more than 4194304 bytes"),
        ("vm.toml", "computer = 1", "computer is not a field; did you mean compute?"),
        ("vm.toml", "[compute]\nlocatoin = 'x'", "compute.locatoin is not a field; did you mean compute.location"),
        ("vm.toml", "[compute]\nlocation = [1]", "compute.location is a single value; write text, a number"),
        ("vm.toml", "compute = 1", "compute has fields of its own"),
        ("vm.toml", "preset = 1", "preset is the name of one, not 1"),
        ("vm.toml", "preset = 'x'", "there is no preset 'x'"),
        ("vm.toml", "[[compute.publicKeys]]\nkey = 1", "compute.publicKeys.0.key is not a field; did you mean"),
        ("vm.toml", "[compute]\ntags = 1", "compute.tags is text, as name:value;name:value, or an object, not 1"),
        ("vm.json", json.dumps({**sample_instance(), "network": 1}), "network is not an object"),
    ],
)
def test_mistake_in_a_file_is_one_line_with_its_place(tmp_path: Path, name: str, text: str, words: str) -> None:
    file = written(tmp_path, name, text)
    with pytest.raises(VmError) as raised:
        load(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_yaml_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(VmError, match=r"is YAML, which needs the package PyYAML; install it, or write"):
        load(written(tmp_path, "vm.yaml", YAML))
