"""`imdsproxy check`: gather, judge, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from imdsproxy.cli.check import report
from imdsproxy.cli.check.finding import EXIT, Finding, worst
from imdsproxy.cli.check.probes.gather import Given, gather
from imdsproxy.cli.check.steps.order import judge, judge_without_settings
from imdsproxy.cli.standard_streams import show
from imdsproxy.errors import SettingsError
from imdsproxy.settings.load import load
from imdsproxy.settings.report import differing


def check(flags: Mapping[str, str], options: Mapping[str, str]) -> int:
    """Check this machine, print the findings, and return the exit status by the worst of them.

    Args:
        flags: Settings by field name.
        options: `json` and `identity`, where they were given.
    """
    findings = _findings(flags, options.get("identity"))
    written = show(report.as_json(findings) if "json" in options else report.text(findings, colour=_colour()))
    status = EXIT[worst(findings.values())]
    return status if written else max(status, 1)


def _findings(flags: Mapping[str, str], identity: str | None) -> dict[str, Finding]:
    try:
        loaded = load(flags)
    except SettingsError as error:
        return judge_without_settings(str(error))
    given = Given(
        config=loaded.settings.config(), differing=differing(loaded), warnings=loaded.warnings, identity=identity
    )
    return judge(gather(given))


def _colour() -> bool:
    """Return whether to use colour: on a terminal, unless NO_COLOR is set (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
