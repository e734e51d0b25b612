"""Helm as a program that answers requests: a line of JSON on standard input, a line on standard output.

helm-python-sdk is Helm 4 as a library. That is a Go program with threads of its own, and tests fork, so it runs in a
process of its own: `python -m tests.helm`. `tests/chart.py` starts it and asks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import helm_python as helm

_INFORMATION = 1


def answer(request: dict[str, Any]) -> Any:
    """Return what the request asks for; HelmError if Helm refuses the values."""
    values = request.get("values", {})
    if request["wish"] == "lint":
        report = helm.lint(request["chart"], values, strict=True, namespace=request["namespace"])
        return [*report["errors"], *(one["error"] for one in report["messages"] if one["severity"] > _INFORMATION)]
    if request["wish"] == "package":
        return helm.package(request["chart"], destination=request["folder"])
    with helm.Chart.load(request["chart"]) as chart:
        chart.validate_schema(values)
        found = chart.render(values, name=request["name"], namespace=request["namespace"])
    return {Path(name).name: text.strip("\n") for name, text in found.items() if text.strip()}


def main() -> None:
    """Answer every request until standard input ends."""
    for line in sys.stdin:
        try:
            found = {"found": answer(json.loads(line))}
        except helm.HelmError as error:
            found = {"refused": str(error)}
        sys.stdout.write(f"{json.dumps(found)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
