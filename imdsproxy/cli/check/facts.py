"""What the probes learn about the machine, as frozen values. The steps judge nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from imdsproxy.cli.check.answers import Exchange, RunningProxy, Token
from imdsproxy.cli.check.ruleset import Rule, Ruleset
from imdsproxy.config import Config, SettingInForce

System = Literal["linux", "windows", "other"]


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine."""

    number: int
    user: int | None
    """None on Windows, whose users have no numbers."""
    name: str

    def __str__(self) -> str:
        user = "" if self.user is None else f", user {self.user}"
        return f"{self.name} (process {self.number}{user})"


class Place(StrEnum):
    """The state of an address that the proxy listens at."""

    FREE = "free"
    OURS = "ours"
    """An imdsproxy answers there."""
    TAKEN = "taken"
    """Another program listens there."""
    ABSENT = "absent"
    """No interface has this link-local address yet. A proxy starts nevertheless."""
    UNUSABLE = "unusable"
    """It cannot be listened on."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP address or the path of a Unix socket from the settings, and its state now."""

    setting: str
    """The setting that names it: PORT, ADMIN_PORT or UDS."""
    name: str
    """The address or path for people."""
    place: Place
    why: str = ""
    """Why it is unusable, or what is known about the program that has it."""
    processes: tuple[Process, ...] = ()
    """Who listens there, as far as this user may see it."""


class Reach(StrEnum):
    """What the routing table says about an address."""

    ROUTED = "routed"
    NO_ROUTE = "no route"
    BLOCKED = "blocked"
    """A blackhole, prohibit or unreachable route."""
    LOCAL = "local"
    """The address is one of this machine."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an address, read from the routing table without sending anything."""

    reach: Reach
    interface: str = ""
    """The name of the network interface; on Windows its number."""
    source: str = ""
    """This machine's address on it."""
    gateway: str = ""
    """Empty if the destination is on the link."""
    dhcp: bool | None = None
    """Whether `source` comes from DHCP; None if that is not known."""
    why: str = ""
    """Why the routing table cannot be read."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The route to IMDS, and for comparison the route to the rest of Azure."""

    target: str
    """The address of the upstream, or empty if no route is needed."""
    to_imds: Route
    to_azure: Route
    """The route to 168.63.129.16, Azure's own DNS and DHCP, which uses the primary network interface."""


@dataclass(frozen=True, slots=True)
class Node:
    """Signs that this machine is a Kubernetes node."""

    kubelet: bool = False
    kube_proxy: bool = False
    ebpf_label: bool = False
    """Whether the kubelet's own arguments carry AKS's label for eBPF host routing."""
    cilium: bool = False
    """Whether there are interfaces of Cilium."""


@dataclass(frozen=True, slots=True)
class BudgetFile:
    """The file of BUDGET_FILE as it is now; it is only read."""

    path: str
    exists: bool = False
    problem: str = ""
    """`folder`, `distrusted`, `foreign`, `version`, `clock`, `denied`, or empty."""
    words: str = ""
    """The problem in words, with the remedy where the code that refuses the file has one."""
    damaged: bool = False
    exposed: bool = False
    """Whether every user can put files into its folder."""
    settings: tuple[tuple[int, float], ...] = ()
    """Requests and window of each different setting of the proxies that share it now."""
    processes: tuple[Process, ...] = ()
    """Who has it open, as far as this user may see it."""


@dataclass(frozen=True, slots=True)
class HandoverFile:
    """The file of HANDOVER_FILE as it is now; it is only read."""

    path: str
    entries: int | None = None
    """How many entries the next process would read; None if there is no file that it could use."""
    problem: str = ""
    """`folder` if no file can be made there, `unused` if the one there cannot be used, `denied`, or empty."""
    words: str = ""
    """The problem in words, with the remedy."""


@dataclass(frozen=True, slots=True)
class Access:
    """The file of ACCESS_FILE, as a start would read it."""

    path: str
    problem: str = ""
    """`denied`, `unusable`, or empty."""
    words: str = ""
    """The problem in words, with line and remedy."""
    rules: int = 0
    """The number of rules."""
    mode: str = "enforce"
    """`enforce`, `audit` or `disabled`: what a refusal does, by the file and the settings."""
    default: str = "deny"
    """`allow` or `deny`."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the steps judge."""

    system: System
    config: Config
    user: int | None = None
    """The user of this process, as nft sees it; None if that is not known."""
    differing: tuple[SettingInForce, ...] = ()
    """Settings that differ from their defaults."""
    warnings: tuple[str, ...] = ()
    """Warnings about the settings."""
    start_error: str = ""
    """Why `imdsproxy serve` would refuse to start with these settings."""
    listeners: tuple[Listener, ...] = ()
    proxy: RunningProxy | None = None
    routes: Routes
    versions: Exchange
    """`/metadata/versions` with `Metadata: true`."""
    without_metadata: Exchange | None = None
    """A request without `Metadata`; None if it was not sent."""
    forwarded: Exchange | None = None
    """A request with `X-Forwarded-For`; None if it was not sent."""
    redirected: Exchange | None = None
    """`/metadata/versions` of 169.254.169.254 itself while a redirect is loaded; None if it was not sent."""
    token: Token | None = None
    """None unless `--identity` was given."""
    web_proxies: tuple[tuple[str, str], ...] = ()
    """Web proxies of this environment, by scheme, as Python reads them; `no` has the exceptions."""
    web_proxy_bypassed: bool = False
    """Whether the exceptions cover 169.254.169.254."""
    ruleset: Ruleset | None = None
    """The nftables rules about IMDS; None if they cannot be read."""
    ruleset_words: str = ""
    """Why they cannot be read."""
    legacy_tables: tuple[str, ...] = ()
    """Tables of iptables-legacy, which nft does not show."""
    port_proxy: str = ""
    """Where Windows' portproxy sends 169.254.169.254:80; empty if nowhere."""
    route_localnet: bool | None = None
    """The kernel setting net.ipv4.conf.all.route_localnet; None if it is not known."""
    direct_callers: tuple[int, ...] = ()
    """Users with an open connection to 169.254.169.254:80."""
    node: Node = Node()
    agent: Process | None = None
    """The Metadata Security Protocol's agent."""
    agent_installed: bool = False
    budget_file: BudgetFile | None = None
    handover_file: HandoverFile | None = None
    access: Access | None = None
    """None if there are no access rules."""
    pods_problem: str = ""
    """Why the pods of the node cannot be watched; empty if they can be, or need not."""

    def listener(self, setting: str) -> Listener | None:
        """Return the listener of a setting, or None if the setting is unset."""
        return next((each for each in self.listeners if each.setting == setting), None)

    @property
    def proxy_users(self) -> frozenset[int]:
        """The users that the running proxy runs as, as far as they are known. systemd's own socket is not one."""
        found = [each for each in self.listeners if each.place is Place.OURS]
        processes = (process for each in found for process in each.processes if process.number != 1)
        return frozenset(process.user for process in processes if process.user is not None)

    @property
    def other_rules(self) -> tuple[Rule, ...]:
        """The rules about IMDS in tables that are not imdsproxy's."""
        return () if self.ruleset is None else self.ruleset.others
