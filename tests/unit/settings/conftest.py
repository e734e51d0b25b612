"""The fixtures of all tests of the settings."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every setting from the environment."""
    for name in list(os.environ):
        if name.upper().startswith("IMDSPROXY_"):
            monkeypatch.delenv(name)
