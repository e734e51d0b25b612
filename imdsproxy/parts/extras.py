"""The parts that need an extra of the package. `parts` imports it only where a setting asks for one of them."""

from __future__ import annotations

from imdsproxy.clock import Clock
from imdsproxy.errors import SettingsError
from imdsproxy.ops.pod_troubles import PodTroubleLog
from imdsproxy.ops.traces import Traces
from imdsproxy.peers.pod_watch import PodWatch
from imdsproxy.peers.pods import HELD_FOR, PodTable


def watch_pods(node: str, clock: Clock) -> PodWatch:
    """Return the watch of a node's pods. Raise SettingsError if the extra is not installed."""
    try:
        # Imported here, because the client takes memory and time, and is an extra.
        from imdsproxy.peers.kubernetes import pods_of  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"IMDSPROXY_PODS_OF_NODE needs a client of Kubernetes, and {error.name} is not installed: install "
            "imdsproxy with its extra kubernetes (requirements/kubernetes.txt), or unset it"
        ) from None
    return PodWatch(PodTable(node), pods_of(node), clock, PodTroubleLog(clock, node, HELD_FOR))


def export_traces(clock: Clock) -> Traces:
    """Return the traces that are exported. Raise SettingsError if they cannot be, or the extra is not installed."""
    try:
        # Imported here, because OpenTelemetry takes memory and time, and is an extra.
        from imdsproxy.ops.otlp import Otlp  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"IMDSPROXY_TRACES=true needs OpenTelemetry, and {error.name} is not installed: install imdsproxy with its "
            "extra otel (requirements/otel.txt), or set IMDSPROXY_TRACES=false"
        ) from None
    return Traces(Otlp(), clock)
