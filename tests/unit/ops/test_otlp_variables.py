from __future__ import annotations

import pytest

from imdsproxy.errors import SettingsError
from imdsproxy.ops.otlp_variables import checked_endpoint


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER=console cannot be used"),
        ({"OTEL_TRACES_EXPORTER": "none"}, "set IMDSPROXY_TRACES=false"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc cannot be used"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/json",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT cannot be used"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_ENDPOINT cannot be used"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:y"}, "OTEL_EXPORTER_OTLP_ENDPOINT cannot be used"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "grpc://x"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT cannot be used"),
    ],
)
def test_what_cannot_be_exported_is_refused(variables: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        checked_endpoint(variables)


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, "http://localhost:4318"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http://localhost:4318"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:word@collector/x?key=y"}, "https://collector/x"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:1/v1/traces", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"},
            "http://a:1/v1/traces",
        ),
    ],
)
def test_endpoint_is_returned_without_what_may_be_secret(variables: dict[str, str], shown: str) -> None:
    assert checked_endpoint(variables) == shown
