"""docs/clients.md names the versions of the clients that are tested."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.kit import ROOT

CLIENTS = (
    "azure-identity",
    "msal",
    "opentelemetry-resource-detector-azure",
    "azure-monitor-opentelemetry-exporter",
)


@pytest.mark.parametrize("client", CLIENTS)
def test_documented_versions_are_the_tested_ones(client: str) -> None:
    """After `make lock`: run the tests, see whether what the page says of the client still holds, then rename it."""
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    assert f"| {client} {version(client)}" in text
