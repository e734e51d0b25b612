"""The workflow that publishes a release: pinned, without secrets, with few rights, and with real commands."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.kit import ROOT

pytestmark = pytest.mark.any_python
PATH = ROOT / ".github" / "workflows" / "release.yml"
TEXT = PATH.read_text(encoding="utf-8")
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
STEPS = [(job, step) for job, content in JOBS.items() for step in content["steps"]]
COMMANDS = [step["run"] for _, step in STEPS if "run" in step]


def test_it_runs_for_tags_of_versions_only() -> None:
    assert WORKFLOW[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as true


def test_every_action_is_named_by_a_commit_with_its_version() -> None:
    named = re.findall(r"uses: (\S+)(.*)", TEXT)
    assert len(named) == sum("uses" in step for _, step in STEPS) > 0
    for action, comment in named:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_no_secret_is_used_and_no_right_is_given_beyond_a_job() -> None:
    assert "secrets." not in TEXT
    assert WORKFLOW["permissions"] == {}
    assert JOBS["build"]["permissions"] == {"contents": "read"}
    assert JOBS["publish"]["permissions"] == {"contents": "write", "id-token": "write", "attestations": "write"}


def test_each_step_does_one_thing_and_each_job_ends() -> None:
    for job, step in STEPS:
        assert ("uses" in step) != ("run" in step), (job, step)
    assert JOBS["publish"]["needs"] == "build"


def test_every_make_target_and_variable_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = re.findall(r"^make (\S+)((?: \w+=\S+)*)", "\n".join(COMMANDS), re.MULTILINE)
    assert [target for target, _ in called] == ["release"]
    for target, variables in called:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        for name in re.findall(r"(\w+)=", variables):
            assert f"$({name})" in makefile, name


def test_commands_take_what_others_chose_from_the_environment_only() -> None:
    for command in COMMANDS:
        assert "${{" not in command, command
    for _, step in STEPS:
        for name in step.get("env", {}):
            assert f'"${name}"' in step["run"] or name.startswith("GH_"), name


def test_checksums_are_signed_and_attested_before_the_release() -> None:
    order = [step.get("uses", step.get("run", "")).split("@")[0] for step in JOBS["publish"]["steps"]]
    signing = next(index for index, text in enumerate(order) if text.startswith("cosign sign-blob"))
    publishing = next(index for index, text in enumerate(order) if text.startswith("gh release create"))
    assert order.index("sigstore/cosign-installer") < signing < publishing
    assert signing < order.index("actions/attest-build-provenance") < publishing
