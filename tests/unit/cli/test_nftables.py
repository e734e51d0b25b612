"""The ruleset as text: what is redirected where, in a single table."""

from __future__ import annotations

import re

import pytest

from imdsproxy.cli.nftables import Redirect, removal, rules
from imdsproxy.upstream.loop_advice import missing_exemption

IMDS = "ip daddr 169.254.169.254 tcp dport 80"


def redirect(
    user: str = "990", host: str = "127.0.0.1", port: int = 8254, *, node: bool = False, exclusive: bool = False
) -> Redirect:
    return Redirect(user, host, port, node, exclusive)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_output_chain_redirects_all_users_but_the_proxys() -> None:
    assert lines(rules(redirect())) == [
        "table ip imdsproxy",
        "delete table ip imdsproxy",
        "table ip imdsproxy {",
        "chain output {",
        "type nat hook output priority -110; policy accept;",
        f"{IMDS} meta skuid != 990 counter dnat to 127.0.0.1:8254",
        f"{IMDS} meta skuid 990 accept",
        f"{IMDS} counter dnat to 127.0.0.1:8254",
        "}",
        "chain ports {",
        "type filter hook input priority 110; policy accept;",
        "ip daddr 127.0.0.1 tcp dport 8254 ct status snat counter drop",
        "}",
        "}",
    ]


def test_user_name_is_quoted_for_nft() -> None:
    assert f'{IMDS} meta skuid != "imdsproxy" counter dnat to 10.0.0.4:80' in rules(
        redirect("imdsproxy", "10.0.0.4", 80)
    )


@pytest.mark.parametrize(
    ("wanted", "users"),
    [
        (Redirect("990", "127.0.0.1", 8254, node=True), "meta skuid != 0 meta skuid != 990 counter"),
        (Redirect("990", "127.0.0.1", 8254, node=True, root=True), "tcp dport 80 meta skuid != 990 counter"),
        (Redirect("990", "127.0.0.1", 8254, root=True), "tcp dport 80 meta skuid != 990 counter"),
        (Redirect("0", "127.0.0.1", 8254, node=True), "tcp dport 80 meta skuid != 0 counter"),
        (Redirect("root", "127.0.0.1", 8254, node=True), 'tcp dport 80 meta skuid != "root" counter'),
    ],
)
def test_root_is_exempt_on_a_node_unless_asked(wanted: Redirect, users: str) -> None:
    assert users in rules(wanted)
    assert ("this machine's root" in rules(wanted)) is wanted.root_exempt is ("!= 0 meta" in users)


@pytest.mark.parametrize(
    ("wanted", "exempt"),
    [
        (Redirect("990", "127.0.0.1", 8254), "990"),
        (Redirect("imdsproxy", "127.0.0.1", 8254, node=True), '{ 0, "imdsproxy" }'),
        (Redirect("990", "127.0.0.1", 8254, node=True, root=True), "990"),
        (Redirect("root", "127.0.0.1", 8254, node=True), '"root"'),
    ],
)
def test_packet_without_a_known_user_is_redirected(wanted: Redirect, exempt: str) -> None:
    """A comparison fails where no user is known, so "!=" alone would let such a packet pass."""
    output = rules(wanted).partition("chain output {")[2].partition("}\n\n")[0]
    *_, accepted, last = lines(output)[:4]
    assert accepted == f"{IMDS} meta skuid {exempt} accept"
    assert last == f"{IMDS} counter dnat to 127.0.0.1:8254"


@pytest.mark.parametrize(
    ("host", "node", "chains", "needs"),
    [
        ("127.0.0.1", False, ["output", "ports"], False),
        ("10.0.0.4", False, ["output", "ports"], False),
        ("127.0.0.1", True, ["output", "prerouting", "guard", "ports"], True),
        ("10.0.0.4", True, ["output", "prerouting", "ports"], False),
    ],
)
def test_loopback_is_guarded_if_pods_are_redirected_to_it(
    host: str, node: bool, chains: list[str], needs: bool
) -> None:
    wanted = redirect(host=host, node=node)
    assert re.findall(r"chain (\w+)", rules(wanted)) == chains
    assert wanted.needs_route_localnet is needs
    assert ("sysctl -w net.ipv4.conf.all.route_localnet=1" in rules(wanted)) is needs


@pytest.mark.parametrize(
    ("user", "users"), [("990", "{ 0, 990 }"), ("imdsproxy", '{ 0, "imdsproxy" }'), ("0", "0"), ("root", "0")]
)
def test_exclusive_rule_drops_answers_of_other_users(user: str, users: str) -> None:
    assert f"ip saddr 10.0.0.4 tcp sport 80 meta skuid != {users} counter drop" in rules(
        redirect(user, "10.0.0.4", 80, exclusive=True)
    )


def test_prerouting_chain_redirects_pod_interfaces_only() -> None:
    assert (
        f'{IMDS} meta iifkind {{ "bridge", "netkit", "veth" }} fib daddr . iif oif missing '
        "counter dnat to 127.0.0.1:8254"
    ) in rules(redirect(node=True))


def test_guard_drops_loopback_packets_from_outside() -> None:
    for end in ("saddr", "daddr"):
        assert f'iifname != "lo" ip {end} 127.0.0.0/8 counter drop' in rules(redirect(node=True))


@pytest.mark.parametrize("text", [rules(redirect()), rules(redirect(node=True)), removal()])
def test_ruleset_touches_one_table_only(text: str) -> None:
    assert set(re.findall(r"^(?:delete )?table (.*?)(?: \{)?$", text, re.MULTILINE)) == {"ip imdsproxy"}
    # Declared before it is deleted: deleting what is not there would fail.
    assert text.index("\ntable ip imdsproxy\n") < text.index("\ndelete table ip imdsproxy\n")


def test_removal_deletes_the_table() -> None:
    assert lines(removal()) == ["table ip imdsproxy", "delete table ip imdsproxy"]


def test_loop_advice_matches_rule_and_command() -> None:
    told = missing_exemption(990)
    assert "`meta skuid != 990`" in told
    assert "`imdsproxy redirect --load --uid 990`" in told


def test_loop_advice_without_a_user_number_names_none() -> None:
    assert "--uid USER`" in missing_exemption(None)
