"""Read the Kubernetes manifests of `k8s/` for tests: rendered, by document and by pod.

`python -m tests.manifests` renders them again into `k8s/rendered/`: those of the chart by Helm (`tests/chart.py`), the
overlays by kubectl, the one that is installed or what `.ci/debian` fetches.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import chart
from tests.kit import ROOT

MANIFESTS = ROOT / "k8s"
RENDERED = MANIFESTS / "rendered"
OVERLAYS = tuple(sorted(folder.name for folder in (MANIFESTS / "overlays").iterdir() if folder.is_dir()))
"""Workloads with a sidecar, rendered by kustomize."""
VALUES = MANIFESTS / "helm" / "layouts"
CHARTED = tuple(sorted(path.stem for path in VALUES.glob("*.yaml")))
"""What can be installed as it is, rendered from the chart."""
NODES = tuple(name for name in CHARTED if name.startswith("node"))
"""Those of them that have a pod on every node."""
LAYOUTS = (*NODES, *OVERLAYS)
"""Those that have a pod."""

# Where a workload describes its pods; a pod is its own description.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, which is ten times as fast, where PyYAML has it."""
_TEMPLATES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), ("spec", "template")),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Pod": (),
}
KINDS = tuple(_TEMPLATES)

Document = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """A container of a pod; `fields` as the Kubernetes API has them, what it lacks taken from the pod."""

    fields: Mapping[str, Any]
    pod: Pod

    @property
    def name(self) -> str:
        return str(self.fields["name"])

    @property
    def image(self) -> str:
        return str(self.fields["image"])

    @property
    def stays(self) -> bool:
        """Whether it is a native sidecar: an init container that runs as long as the pod."""
        return self.fields.get("restartPolicy") == "Always"

    @property
    def security(self) -> dict[str, Any]:
        """What it may do; the container's own word goes before the pod's."""
        return {**self.pod.spec.get("securityContext", {}), **self.fields.get("securityContext", {})}

    @property
    def capabilities(self) -> list[str]:
        """The capabilities that it has; AssertionError if it does not drop all others."""
        wanted = self.security.get("capabilities", {})
        assert wanted.get("drop") == ["ALL"], f"{self.name} keeps whatever the runtime gives it"
        return list(wanted.get("add", []))

    @property
    def probes(self) -> dict[str, Any]:
        names = ("startupProbe", "livenessProbe", "readinessProbe")
        return {name: self.fields[name] for name in names if name in self.fields}

    def env(self, downward: Mapping[str, str]) -> dict[str, str]:
        """Return its environment as the manifest has it; `downward` knows the pod's own fields, e.g. `status.podIP`."""
        downward = {"spec.nodeName": "node-a", **downward}
        found: dict[str, str] = {}
        for variable in self.fields.get("env", []):
            value = variable.get("value")
            found[variable["name"]] = (
                downward[variable["valueFrom"]["fieldRef"]["fieldPath"]] if value is None else value
            )
        return found

    def port(self, named: str | int) -> int:
        """Return a port of its own by name or number; AssertionError if it is not declared."""
        ports = self.fields.get("ports", [])
        found = [port["containerPort"] for port in ports if named in (port.get("name"), port["containerPort"])]
        assert len(found) == 1, f"{self.name} declares no port {named}"
        return int(found[0])


@dataclass(frozen=True)
class Pod:
    """A pod as a document describes it."""

    kind: str
    """The kind of the document: its own, or a workload's."""
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def init_containers(self) -> list[Container]:
        return [Container(fields, self) for fields in self.spec.get("initContainers", [])]

    @property
    def own_containers(self) -> list[Container]:
        return [Container(fields, self) for fields in self.spec["containers"]]

    @property
    def containers(self) -> list[Container]:
        """All of them, in the order in which they begin."""
        return self.init_containers + self.own_containers

    def container(self, name: str) -> Container:
        return next(one for one in self.containers if one.name == name)

    @property
    def grace(self) -> int:
        return int(self.spec.get("terminationGracePeriodSeconds", 30))


@dataclass(frozen=True)
class Image:
    """What a stage of the Dockerfile says about how its image is run."""

    entrypoint: Sequence[str]
    command: Sequence[str]
    user: str


def image(name: str) -> Image:
    """Return an image, whatever its tag: `imdsproxy` is the Dockerfile's last stage, `imdsproxy-STAGE` another."""
    stages = _stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    stage = name.partition(":")[0].removeprefix("imdsproxy").removeprefix("-")
    found: dict[str, str] = {}
    parent: str | None = stage or list(stages)[-1]
    while parent in stages:
        instructions = stages[parent]
        found = {**instructions, **found}
        parent = instructions["FROM"]
    return Image(json.loads(found.get("ENTRYPOINT", "[]")), json.loads(found.get("CMD", "[]")), found.get("USER", "0"))


def _stages(dockerfile: str) -> dict[str, dict[str, str]]:
    """Return of each stage its last word on each instruction, stages by name or else by number."""
    stages: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in dockerfile.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            parts = [part for part in rest.split() if not part.startswith("--")]
            current = stages[parts[2] if len(parts) == 3 else str(len(stages))] = {}
            current["FROM"] = parts[0]
        elif word.isupper():
            current[word] = rest.strip()
    return stages


def kubectl() -> str | None:
    """Return the program that renders kustomizations, or None if this machine has none."""
    return shutil.which("kubectl") or shutil.which("kubectl", path=ROOT / ".debian")


def source(overlay: str) -> Path:
    """Return the folder of an overlay."""
    return MANIFESTS / "overlays" / overlay


def values(layout: str) -> Document:
    """Return the values with which a layout is rendered from the chart."""
    (found,) = read((VALUES / f"{layout}.yaml").read_text(encoding="utf-8"))
    return found


def file_of(layout: str) -> str:
    """Render a layout of the chart as its file has it: below what its values say of their purpose."""
    purpose = "".join(itertools.takewhile(lambda line: line.startswith("#"), _lines(VALUES / f"{layout}.yaml")))
    made = f"#\n# Rendered from k8s/helm/imdsproxy with k8s/helm/layouts/{layout}.yaml.\n"
    return purpose + made + chart.plain(chart.render(values(layout)))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def render(folder: Path) -> str:
    """Render a kustomization. AssertionError with kubectl's complaint if it cannot be."""
    program = kubectl()
    assert program, "kubectl is not installed"
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(text: str) -> list[Document]:
    """Return the documents of a stream of YAML."""
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document is not None]


def in_order(found: Sequence[Document]) -> list[Document]:
    """Return documents ordered by kind and name, which is how two renderings of a layout are compared."""
    return sorted(found, key=lambda document: (document["kind"], document["metadata"]["name"]))


def documents(layout: str) -> list[Document]:
    """Return what a layout was rendered to."""
    return read((RENDERED / f"{layout}.yaml").read_text(encoding="utf-8"))


def pods(found: Sequence[Document]) -> Iterator[Pod]:
    """Return the pods that documents describe."""
    for document in found:
        if document["kind"] not in _TEMPLATES:
            continue
        template: Document = document
        for part in _TEMPLATES[document["kind"]]:
            template = template[part]
        labels = template.get("metadata", {}).get("labels", {})
        yield Pod(document["kind"], document["metadata"]["name"], labels, template["spec"])


def pod(layout: str) -> Pod:
    """Return the one pod of a layout."""
    (found,) = pods(documents(layout))
    return found


def main() -> None:
    """Render every layout into its file."""
    files = {layout: file_of(layout) for layout in CHARTED} | {layout: render(source(layout)) for layout in OVERLAYS}
    for layout, text in files.items():
        (RENDERED / f"{layout}.yaml").write_text(text, encoding="utf-8")
        sys.stdout.write(f"{layout}\n")


if __name__ == "__main__":
    main()
