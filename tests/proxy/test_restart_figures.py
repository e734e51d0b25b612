"""docs/scaling.md has the figures of a restart with a handover file."""

from __future__ import annotations

import sys

import pytest

from tests.kit import ROOT

if sys.platform != "linux":
    pytest.skip("entries are handed over on Linux only", allow_module_level=True)

from benchmarks.scaling.restart import NAME, table

pytestmark = [pytest.mark.any_python, pytest.mark.no_cover]


def test_page_has_the_table_of_the_program() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert f"<!-- {NAME} -->\n{table()}\n" in text
