"""Where a redirect is not loaded, and what is said about rules that it leads around."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from imdsproxy.cli import node_limits
from imdsproxy.cli.check.ruleset import Rule
from imdsproxy.cli.redirect import LoadError, redirect
from imdsproxy.cli.redirect_limits import (
    BLOCKER,
    EBPF_LABEL,
    Limits,
    leaves_pods_out,
    notes,
    obstacle,
    read_labels,
)
from imdsproxy.config import Config
from imdsproxy.errors import SettingsError

RESTRICTION = Rule("ip mangle", "FORWARD", frozenset({"forward"}), -150, "drop")
LABEL = f"{EBPF_LABEL}=true"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (LABEL, (LABEL,)),
        (f" a=b, {LABEL},", ("a=b", LABEL)),
        ("", ()),
        ("empty=", ("empty=",)),
    ],
)
def test_labels_are_read(text: str, labels: tuple[str, ...]) -> None:
    assert read_labels(text) == labels


@pytest.mark.parametrize("text", ["true", "=true", "a=b,c"])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="write each label as KEY=VALUE"):
        read_labels(text)


@pytest.mark.parametrize(
    ("limits", "node", "named"),
    [
        (Limits(), True, ""),
        (Limits(("a=b",)), True, ""),
        (Limits((f"{EBPF_LABEL}=false",)), True, ""),
        (Limits((LABEL,)), True, f"(the label {LABEL})"),
        (Limits(("a=b", LABEL)), True, f"(the label {LABEL})"),
        (Limits(kubelet_label=True), True, f"(the label {LABEL} in the kubelet's arguments)"),
        # The machine's own calls pass netfilter all the same.
        (Limits((LABEL,), kubelet_label=True), False, ""),
        (Limits(blocker=True), True, BLOCKER),
        (Limits(blocker=True), False, BLOCKER),
        # Cilium without eBPF host routing leaves netfilter its packets.
        (Limits(cilium=True), True, ""),
    ],
)
def test_obstacle_has_its_reason(limits: Limits, node: bool, named: str) -> None:
    reason = obstacle(limits, node=node)
    assert named in reason
    assert bool(reason) is bool(named)


def test_restriction_is_named_and_respected_only_on_demand() -> None:
    limits = Limits(restrictions=(RESTRICTION,))
    assert leaves_pods_out(limits)
    assert not leaves_pods_out(Limits())
    (around,) = notes(limits, node=True, respected=False)
    assert "AKS's IMDS restriction" in around
    assert "drop in table ip mangle, chain FORWARD" in around
    assert "--respect-restriction leaves pods out" in around
    (kept,) = notes(limits, node=True, respected=True)
    assert "they stay in force, and pods are not redirected" in kept
    assert notes(limits, node=False, respected=False) == []


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(unreadable="nft is not installed"), "has to read the loaded rules: nft is not installed"),
        (Limits(legacy=("filter", "raw")), r"cannot see the tables of iptables-legacy here \(filter\)"),
        (Limits(legacy=("mangle",), restrictions=(RESTRICTION,)), r"iptables-legacy here \(mangle\)"),
    ],
)
def test_restriction_that_cannot_be_found_out_is_an_error(limits: Limits, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        leaves_pods_out(limits)
    assert not leaves_pods_out(Limits(legacy=("nat",)))


def test_unknown_host_routing_of_cilium_adds_a_note() -> None:
    (note,) = notes(Limits(cilium=True), node=True, respected=False)
    assert EBPF_LABEL in note
    assert notes(Limits(("a=b",), cilium=True), node=True, respected=False) == []
    assert notes(Limits(cilium=True), node=False, respected=False) == []


@pytest.mark.skipif(sys.platform != "linux", reason="nftables is for Linux")
@pytest.mark.parametrize("force", [False, True])
def test_blocker_that_is_pinned_keeps_a_redirect_from_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    monkeypatch.setattr(node_limits, "_BLOCKER", tmp_path)
    options = {"load": "true", "uid": "990", **({"force": "true"} if force else {})}
    assert node_limits.within_limits(options) == (options, [])
    (tmp_path / "iptables_nftables_block").touch()
    if force:
        obeyed, found = node_limits.within_limits(options)
        assert obeyed == options
        assert found[0].startswith("loaded by --force: AKS's rule blocker")
        assert "--force" not in found[0].removeprefix("loaded by --force"), "advice that was followed"
    else:
        with pytest.raises(LoadError, match="AKS's rule blocker is loaded on this node") as raised:
            node_limits.within_limits(options)
        assert all(word in str(raised.value) for word in ("imdsproxy address", "CiliumLocalRedirectPolicy", "--force"))


@pytest.mark.parametrize("restrictions", [(), (RESTRICTION,)])
def test_respected_restriction_leaves_out_the_pods_and_not_the_node(
    monkeypatch: pytest.MonkeyPatch, restrictions: tuple[Rule, ...]
) -> None:
    """The kubelet of the node must reach IMDS while the proxy is away, whether pods are redirected or not."""
    monkeypatch.setattr(node_limits, "look_at_limits", lambda _options: Limits(restrictions=restrictions))
    obeyed, _ = node_limits.within_limits({"node": "true", "uid": "990", "respect-restriction": "true"})
    made = redirect(Config(), obeyed)
    assert "meta skuid != 0 meta skuid != 990 counter dnat" in made.text
    assert ("chain prerouting" in made.text) is ("pods too" in made.in_force) is (not restrictions)
    assert made.in_force.endswith("except those of user 990 and of root's programs")


def test_restriction_without_pods_has_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_limits, "look_at_limits", lambda _options: Limits())
    _, (note,) = node_limits.within_limits({"uid": "990", "respect-restriction": "true"})
    assert note.startswith("--respect-restriction has no effect without --node")


@pytest.mark.skipif(sys.platform != "linux", reason="nftables is for Linux")
def test_printed_ruleset_is_for_any_machine() -> None:
    options = {"node": "true", "uid": "990", "node-label": LABEL}
    assert node_limits.within_limits(options) == (options, [])
    with pytest.raises(LoadError, match="eBPF host routing"):
        node_limits.within_limits({**options, "load": "true"})
