"""Checking OpenTelemetry's own environment variables: whether `otlp` can do what they ask for, and its endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from imdsproxy.errors import SettingsError

_ENDPOINT = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def checked_endpoint(environment: Mapping[str, str]) -> str:
    """Return the endpoint for a log line, without what may be secret in it.

    Raises:
        SettingsError: OpenTelemetry's variables ask for what this exporter cannot do.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter not in {"", "otlp"}:
        raise SettingsError(
            f"OTEL_TRACES_EXPORTER={exporter} cannot be used: imdsproxy exports by otlp only; unset it, "
            "or set IMDSPROXY_TRACES=false"
        )
    name, protocol = _first(environment, _PROTOCOL, "http/protobuf")
    if protocol != "http/protobuf":
        raise SettingsError(
            f"{name}={protocol} cannot be used: imdsproxy exports by http/protobuf only; unset it, and let the "
            "endpoint name the collector's port for OTLP over HTTP, usually 4318"
        )
    name, endpoint = _first(environment, _ENDPOINT, "http://localhost:4318")
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        usable = False
    if not usable:
        raise SettingsError(f"{name} cannot be used: it must be a URL such as http://localhost:4318")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _first(environment: Mapping[str, str], names: Sequence[str], default: str) -> tuple[str, str]:
    """Return the first of these variables that is set, and its value."""
    return next(((name, value) for name in names if (value := environment.get(name, "").strip())), (names[-1], default))
