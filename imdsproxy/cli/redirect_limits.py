"""Where a redirect has no effect on pods, or leads around what keeps them from IMDS.

Sources: learn.microsoft.com/azure/aks, "Performance with eBPF host routing" (host rules are bypassed, AKS blocks new
ones and labels the node) and "Block pod access to the IMDS endpoint" (rules in the FORWARD chain);
github.com/Azure/azure-container-networking, bpf-prog (where the blocker pins its programs).
"""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.cli.check.ruleset import Rule
from imdsproxy.errors import SettingsError

EBPF_LABEL = "kubernetes.azure.com/ebpf-host-routing"
"""AKS's label of nodes where eBPF host routing is on."""
BLOCKER = "/sys/fs/bpf/block-iptables"
"""Where AKS's rule blocker pins its programs."""
INSTEAD = (
    "use a node address (imdsproxy address), a CiliumLocalRedirectPolicy, the Unix socket or a sidecar "
    "(docs/redirect.md), or load it all the same with --force"
)
"""What to do where there is an obstacle."""
_READABLE_BY_LEGACY = frozenset({"filter", "mangle"})


@dataclass(frozen=True, slots=True)
class Limits:
    """What is known of this machine."""

    labels: tuple[str, ...] | None = None
    """The node's labels as KEY=VALUE; None if they are not known."""
    kubelet_label: bool = False
    """Whether the kubelet's arguments have AKS's label."""
    blocker: bool = False
    """Whether AKS's rule blocker is pinned here."""
    cilium: bool = False
    """Whether there are interfaces of Cilium."""
    restrictions: tuple[Rule, ...] = ()
    """The rules that keep pods from IMDS."""
    unreadable: str = ""
    """Why the loaded rules cannot be read; empty if they can."""
    legacy: tuple[str, ...] = ()
    """Tables of iptables-legacy, which nft does not show."""


def read_labels(text: str) -> tuple[str, ...]:
    """Read labels that are written KEY=VALUE and separated by commas. Raise SettingsError for anything else."""
    labels = tuple(each.strip() for each in text.split(",") if each.strip())
    for label in labels:
        if not label.partition("=")[0] or "=" not in label:
            raise SettingsError(f"--node-label={text[:80]!a}: write each label as KEY=VALUE, as {EBPF_LABEL}=true")
    return labels


def obstacle(limits: Limits, *, node: bool) -> str:
    """Return why a redirect must not be loaded here; empty if nothing is known against it.

    `node` is whether it is for pods, too.
    """
    if limits.blocker:
        return (
            f"AKS's rule blocker is loaded on this node ({BLOCKER}): it forbids rules in the node's network, and pods' "
            f"packets bypass them, because eBPF host routing is on"
        )
    given = f"{EBPF_LABEL}=true" in (limits.labels or ())
    if node and (given or limits.kubelet_label):
        where = "" if given else " in the kubelet's arguments"
        return (
            f"this node has eBPF host routing (the label {EBPF_LABEL}=true{where}), so its pods' packets bypass every "
            f"rule of nftables, and --node would have no effect"
        )
    return ""


def leaves_pods_out(limits: Limits) -> bool:
    """Return whether rules keep pods from IMDS, so that a redirect that respects them is not for pods.

    Raises:
        SettingsError: That cannot be found out.
    """
    if limits.unreadable:
        raise SettingsError(f"--respect-restriction has to read the loaded rules: {limits.unreadable}")
    hidden = sorted(_READABLE_BY_LEGACY.intersection(limits.legacy))
    if hidden:
        raise SettingsError(
            f"--respect-restriction cannot see the tables of iptables-legacy here ({', '.join(hidden)}); look with "
            '"iptables-legacy-save | grep 169.254.169.254", and leave --node out if a rule there drops pods\' calls'
        )
    return bool(limits.restrictions)


def notes(limits: Limits, *, node: bool, respected: bool) -> list[str]:
    """Return the notes about pods, one line each.

    Args:
        limits: What is known.
        node: Whether the redirect was asked for pods, too.
        respected: Whether it leaves pods out where rules keep them from IMDS.
    """
    found = []
    if node and limits.restrictions:
        rules = "; ".join(map(str, limits.restrictions))
        kept = f"rules keep pods from IMDS, as AKS's IMDS restriction does ({rules})"
        found.append(
            f"{kept}; they stay in force, and pods are not redirected"
            if respected
            else f"{kept}; this redirect leads around them, and pods get this VM's tokens. --respect-restriction "
            "leaves pods out"
        )
    if node and limits.cilium and limits.labels is None:
        found.append(
            "Cilium's interfaces are here; with its eBPF host routing, pods' packets bypass these rules: "
            f'"kubectl get node -L {EBPF_LABEL}" says whether it is on, and --node-label passes that on'
        )
    return found
