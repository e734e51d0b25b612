"""Render, lint and package the Helm chart `k8s/helm/imdsproxy` by Helm itself (`tests/helm.py`).

Where helm-python-sdk has no wheel (macOS on x86_64), `AVAILABLE` is false and the tests that render are skipped.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kit import ROOT

AVAILABLE = importlib.util.find_spec("helm_python") is not None
CHART = ROOT / "k8s" / "helm" / "imdsproxy"
NAMESPACE = "imdsproxy"

# In the order in which a cluster needs them.
_ORDER = (
    "namespace",
    "serviceaccount",
    "priorityclass",
    "access",
    "networkpolicy",
    "daemonset",
    "cilium",
    "monitors",
    "injection",
)
_OF_TESTS = "verify"
"""What `helm test` runs is no part of an installation."""
_SEPARATOR = "---\n"
_OF_HELM = re.compile(r"^ +(?:helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", re.MULTILINE)


class RefusedError(Exception):
    """What Helm has against the values."""


@functools.cache
def _helm() -> subprocess.Popen[str]:
    """Start Helm, once for this process, which ends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    atexit.register(process.communicate)
    return process


def _ask(wish: str, **details: Any) -> Any:
    process = _helm()
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{json.dumps({'wish': wish, 'chart': str(CHART), 'namespace': NAMESPACE, **details})}\n")
    process.stdin.flush()
    found = json.loads(process.stdout.readline())
    if "refused" in found:
        raise RefusedError(found["refused"])
    return found["found"]


def parts(values: Mapping[str, Any], chart: Path = CHART) -> dict[str, str]:
    """Return what each template is rendered to, by its name without folder; RefusedError if the values are."""
    found = _ask("render", values=dict(values), chart=str(chart), name="imdsproxy")
    return {str(name): str(text) for name, text in found.items()}


def render(values: Mapping[str, Any]) -> str:
    """Return the objects that the chart makes, as a stream of YAML."""
    found = parts(values)
    manifests = {name.removesuffix(".yaml"): text for name, text in found.items() if name.endswith(".yaml")}
    manifests.pop(_OF_TESTS, None)
    assert manifests.keys() <= set(_ORDER), "a template has no place in the order"
    texts = [manifests[name].removeprefix(_SEPARATOR) for name in _ORDER if name in manifests]
    return _SEPARATOR + f"\n{_SEPARATOR}".join(texts) + "\n"


def plain(rendered: str) -> str:
    """Return it without the two labels that say that Helm installed it. Nothing else differs in `k8s/rendered`."""
    return _OF_HELM.sub("", rendered)


def notes(values: Mapping[str, Any]) -> str:
    """Return what a person reads after `helm install`."""
    return parts(values)["NOTES.txt"]


def verification(values: Mapping[str, Any]) -> str:
    """Return the pod that `helm test` runs, as YAML."""
    return parts(values)[f"{_OF_TESTS}.yaml"]


def lint(values: Mapping[str, Any]) -> list[str]:
    """Return what `helm lint --strict` has against the chart with these values."""
    return [str(complaint) for complaint in _ask("lint", values=dict(values))]


def package(folder: Path) -> Path:
    """Write the chart's archive into a folder, and return its path."""
    return Path(_ask("package", folder=str(folder)))
