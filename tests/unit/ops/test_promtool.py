"""Prometheus's own checker reads the metrics."""

from __future__ import annotations

import pytest

from tests.monitoring import full_text
from tests.promtool import MISSING, program, promtool

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.skipif(program() is None, reason=MISSING),
]


def test_metrics_have_no_finding() -> None:
    assert promtool("check", "metrics", given=full_text()) == (0, "")


def test_the_checker_finds_what_breaks_its_rules() -> None:
    status, said = promtool("check", "metrics", given=b"# TYPE imdsproxy_bad counter\nimdsproxy_bad 1\n")
    assert status == 3
    assert 'counter metrics should have "_total" suffix' in said
