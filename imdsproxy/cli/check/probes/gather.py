"""Gather the facts: read the machine, then ask as little as possible."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from imdsproxy.cli.check.facts import BudgetFile, Facts, HandoverFile, Listener, Node, Place, Process, System
from imdsproxy.cli.check.probes import network
from imdsproxy.cli.check.probes.access import look_at_access, look_at_pods
from imdsproxy.cli.check.probes.asking import Pace
from imdsproxy.cli.check.probes.places import look_at_places
from imdsproxy.cli.check.probes.processes import Seen, look_at_processes
from imdsproxy.cli.check.probes.questions import ask_questions
from imdsproxy.cli.check.probes.rules import Rules, look_at_rules
from imdsproxy.cli.check.probes.running_proxy import addresses, is_imdsproxy, running_proxy
from imdsproxy.cli.check.ruleset import Redirect
from imdsproxy.cli.proc_net_tcp import Row
from imdsproxy.cli.startup_checks import check_targets, check_upstream
from imdsproxy.clock import Clock, SystemClock
from imdsproxy.config import Config, SettingInForce
from imdsproxy.errors import StartError
from imdsproxy.protocol.address import Address
from imdsproxy.upstream.loop_advice import own_user

_SYSTEM: System = "linux" if sys.platform == "linux" else "windows" if sys.platform == "win32" else "other"
_AGENT_FILES = ("/etc/azure/proxy-agent.json", "/usr/sbin/azure-proxy-agent")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command line and the settings say."""

    config: Config
    differing: tuple[SettingInForce, ...] = ()
    """Settings that differ from their defaults."""
    warnings: tuple[str, ...] = ()
    identity: str | None = None
    """The client id of the identity to ask for a token; empty for the VM's own, None for not asking."""


def gather(given: Given, clock: Clock | None = None, sleep: Callable[[float], object] = time.sleep) -> Facts:
    """Return the facts about this machine."""
    config, pace = given.config, Pace(clock or SystemClock(), sleep)
    file = None if config.budget_file is None else Path(config.budget_file)
    seen = look_at_processes(file) if _SYSTEM == "linux" else Seen()
    rules = look_at_rules() if _SYSTEM == "linux" else Rules()
    rows = network.tcp_rows()
    is_ours = cache(lambda address: is_imdsproxy(address, pace))
    listeners = _listeners(config, is_ours, seen, rows)
    address = next(filter(is_ours, addresses(config)), None)
    user = own_user()
    redirect = None if rules.ruleset is None else rules.ruleset.own
    answers = ask_questions(config, address, given.identity, _not_exempt(redirect, user), pace)
    web_proxies, bypassed = network.web_proxies()
    return Facts(
        system=_SYSTEM,
        config=config,
        differing=given.differing,
        warnings=given.warnings,
        start_error=_start_error(config),
        listeners=listeners,
        # Read after the questions, so that it includes them.
        proxy=None if address is None else running_proxy(address, pace),
        routes=network.look_at_routes(config.upstream),
        versions=answers.versions,
        without_metadata=answers.without_metadata,
        forwarded=answers.forwarded,
        redirected=answers.redirected,
        token=answers.token,
        web_proxies=web_proxies,
        web_proxy_bypassed=bypassed,
        ruleset=rules.ruleset,
        ruleset_words=rules.words,
        legacy_tables=rules.legacy,
        port_proxy=_port_proxy(),
        route_localnet=rules.route_localnet,
        # With a redirect, connections to the proxy carry IMDS's address as well.
        direct_callers=network.callers(rows, _proxys(listeners)) if rules.ruleset and redirect is None else (),
        node=Node(seen.kubelet, seen.kube_proxy, seen.ebpf_label, network.has_cilium()),
        agent=_agent(seen),
        agent_installed=any(Path(each).exists() for each in _AGENT_FILES),
        budget_file=_budget_file(config, pace, seen),
        handover_file=_handover_file(config, pace),
        access=look_at_access(config),
        pods_problem=look_at_pods(config, pace.clock),
    )


def _start_error(config: Config) -> str:
    try:
        check_targets(config)
        check_upstream(config.upstream)
    except StartError as error:
        return str(error)
    return ""


def _listeners(config: Config, is_ours: Callable[[Address], bool], seen: Seen, rows: list[Row]) -> tuple[Listener, ...]:
    def owners(inode: int) -> tuple[Process, ...]:
        return tuple(seen.by_socket.get(inode, ()))

    return tuple(look_at_places(config, is_ours, rows, network.listening_unix_sockets(), owners))


def _proxys(listeners: tuple[Listener, ...]) -> set[int]:
    ours = (listener for listener in listeners if listener.place is Place.OURS)
    return {process.user for listener in ours for process in listener.processes if process.user is not None}


def _not_exempt(redirect: Redirect | None, user: int | None) -> Redirect | None:
    exempt = redirect is not None and (redirect.exempt == str(user) or (redirect.root_exempt and user == 0))
    return None if user is None or exempt else redirect


def _budget_file(config: Config, pace: Pace, seen: Seen) -> BudgetFile | None:
    if sys.platform == "linux" and config.budget_file is not None:  # the setting is refused elsewhere
        from imdsproxy.cli.check.probes.budget_file import look_at_budget_file  # noqa: PLC0415  # Linux only

        return look_at_budget_file(config.budget_file, pace.clock, tuple(seen.by_file))
    return None


def _handover_file(config: Config, pace: Pace) -> HandoverFile | None:
    if sys.platform == "linux" and config.handover_file is not None:  # the setting is refused elsewhere
        from imdsproxy.cli.check.probes.handover_file import look_at_handover_file  # noqa: PLC0415  # Linux only

        return look_at_handover_file(config.handover_file, config, pace.clock)
    return None


def _agent(seen: Seen) -> Process | None:
    if sys.platform == "win32":
        from imdsproxy.cli.check.probes.windows_network import agent_on_windows  # noqa: PLC0415  # this system only

        return agent_on_windows()
    return seen.agent


def _port_proxy() -> str:
    if sys.platform == "win32":
        from imdsproxy.cli.check.probes.windows_network import port_proxy  # noqa: PLC0415  # this system only

        return port_proxy()
    return ""
