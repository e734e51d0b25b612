"""Find out what limits a redirect on this machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from imdsproxy.cli.check.probes.network import has_cilium
from imdsproxy.cli.check.probes.processes import look_at_processes
from imdsproxy.cli.check.probes.rules import Rules, look_at_rules
from imdsproxy.cli.check.ruleset import keeps_pods_away
from imdsproxy.cli.redirect import LEAVE_PODS_OUT, LoadError
from imdsproxy.cli.redirect_limits import BLOCKER, INSTEAD, Limits, leaves_pods_out, notes, obstacle, read_labels

_BLOCKER = Path(BLOCKER)


def look_at_limits(options: Mapping[str, str]) -> Limits:
    """Return what is known of this machine. A ruleset that is printed for another machine has no limits here."""
    labels = read_labels(options["node-label"]) if "node-label" in options else None
    node = "node" in options
    if sys.platform != "linux" or not {"load", "respect-restriction"}.intersection(options):
        return Limits(labels)
    rules = look_at_rules() if node else Rules()
    restrictions = () if rules.ruleset is None else tuple(filter(keeps_pods_away, rules.ruleset.others))
    return Limits(
        labels,
        node and look_at_processes().ebpf_label,
        _BLOCKER.is_dir() and any(_BLOCKER.iterdir()),
        has_cilium(),
        restrictions,
        rules.words,
        rules.legacy,
    )


def within_limits(options: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the options of `imdsproxy redirect` as far as they can be obeyed here, and notes about the rest.

    Raises:
        LoadError: The redirect would be loaded without effect, and `force` is not among the options.
        SettingsError: An option cannot be read, or its condition cannot be found out.
    """
    limits = look_at_limits(options)
    node, respects = "node" in options, "respect-restriction" in options
    reason = obstacle(limits, node=node)
    if reason and "load" in options and "force" not in options:
        raise LoadError(f"{reason}; {INSTEAD}")
    obeyed = dict(options)
    left_out = respects and node and leaves_pods_out(limits)
    if left_out:
        obeyed[LEAVE_PODS_OUT] = "true"  # it stays a node, whose kubelet reaches IMDS itself
    found = [f"loaded by --force: {reason}"] if reason and "load" in options else []
    if respects and not node:
        found.append("--respect-restriction has no effect without --node: no requests of pods are redirected")
    return obeyed, found + notes(limits, node=node, respected=left_out)
