"""Run OpenTelemetry's resource detector, as at the start of an instrumented program, and print the result as JSON.

`{"client": "detector"}`: opentelemetry-resource-detector-azure. `{"client": "exporter"}`: what Azure Monitor's exporter
says of the machine in its statistics of itself. `"times"` asks so often in one process, `"pause"` seconds apart.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.clients import guard


def detector() -> Callable[[], Any]:
    from opentelemetry.resource.detector.azure.vm import AzureVMResourceDetector  # noqa: PLC0415  # one of two

    return lambda: dict(AzureVMResourceDetector().detect().attributes)


def exporter() -> Callable[[], Any]:
    """Those statistics alone; the rest of the exporter would talk to Azure."""
    from azure.monitor.opentelemetry.exporter.statsbeat._statsbeat_metrics import _StatsbeatMetrics  # noqa: PLC0415
    from opentelemetry.metrics import CallbackOptions  # noqa: PLC0415
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415

    metrics = _StatsbeatMetrics(
        MeterProvider(shutdown_on_exit=False),
        instrumentation_key="",
        endpoint="https://nowhere.invalid",
        disable_offline_storage=True,
        long_interval_threshold=0,
        has_credential=False,
    )

    def ask() -> Any:
        (observation,) = metrics._get_attach_metric(CallbackOptions())
        said = observation.attributes or {}
        return {name: said[name] for name in ("rp", "rpId", "os")}

    return ask


def asked(order: dict[str, Any]) -> list[dict[str, Any]]:
    ask = detector() if order["client"] == "detector" else exporter()
    found = []
    for turn in range(order.get("times", 1)):
        if turn:
            time.sleep(order["pause"])
        began = time.monotonic()
        got = ask()
        found.append({"got": got, "seconds": time.monotonic() - began})
    return found


def main() -> None:
    """Obey the command line."""
    guard.only_in_a_namespace()
    json.dump(asked(json.loads(sys.argv[1])), sys.stdout)


if __name__ == "__main__":
    main()
