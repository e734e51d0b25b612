"""`imdsproxy check` on hosts whose trouble is real: routes, rules, listeners, files and answers of a kernel."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import forkserver
from tests.kit import wait_until
from tests.system.hosts import ROOT_USER, environment, link
from tests.system.topology import ORDINARY_USER, PROXY_PORT, PROXY_USER, ROUTE_LOCALNET, Azure
from tests.targets import INSTANCE

pytestmark = pytest.mark.system

# A kube-proxy is seen in all network namespaces.
KUBE_PROXY = pytest.mark.xdist_group("a process called kube-proxy")
CHECK = ("imdsproxy.__main__", "check", "--json")


@dataclass(frozen=True)
class Report:
    """What the command printed, and its exit status."""

    exit_status: int
    steps: dict[str, dict[str, Any]]

    def code(self, step: str) -> str:
        """Return the code of a step's finding, or its status if all is well."""
        return str(self.steps[step]["code"] or self.steps[step]["status"])

    def found(self, step: str) -> str:
        return str(self.steps[step]["found"])

    def troubles(self) -> dict[str, str]:
        """Return the codes of all warnings and failures.

        Two steps look at the processes of the whole machine, where other tests may run what they look for.
        """
        steps = self.steps.keys() - {"node", "agent"}
        return {step: self.code(step) for step in steps if self.steps[step]["status"] in {"warning", "failure"}}


def check(azure: Azure, *flags: str, user: int = ROOT_USER, env: dict[str, str] | None = None) -> Report:
    """Run the command in vm, and hold its exit status to its findings."""
    done = azure.vm.run_module(
        *CHECK,
        *flags,
        imported_by=forkserver.of_checks,
        env={**environment(user), **(env or {})},
        user=user,
        timeout=60,
    )
    assert done.stderr == ""
    report = json.loads(done.stdout)
    found = Report(done.returncode, {step["step"]: step for step in report["steps"]})
    statuses = {step["status"] for step in report["steps"]}
    worst = next((status for status in ("failure", "warning") if status in statuses), "ok")
    assert (report["status"], done.returncode) == (worst, {"ok": 0, "warning": 1, "failure": 2}[worst])
    return found


@contextlib.contextmanager
def serving(azure: Azure, host: str, port: int, answer: bytes) -> Iterator[None]:
    """Answer every connection at an address of vm with these bytes."""
    program = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("listens", flush=True)
    while True:
        with server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(bytes.fromhex(sys.argv[3]))
"""
    log = azure.folder / f"serving-{port}.log"
    with azure.vm.start(sys.executable, "-ISc", program, host, str(port), answer.hex(), log=log):
        wait_until(lambda: "listens" in log.read_text(encoding="ascii"))
        yield


def test_healthy_vm_without_a_proxy_is_well(azure: Azure) -> None:
    report = check(azure)
    assert report.troubles() == {}
    assert "interface eth0 (gateway 10.0.0.1, source 10.0.0.4)" in report.found("route")
    assert report.steps["answer"]["asked"] == "http://169.254.169.254"
    targets = [arrival.target for arrival in azure.arrivals()]
    assert targets == ["/metadata/versions", "/metadata/identity/info?api-version=2018-02-01", "/metadata/versions"]
    assert [arrival.status for arrival in azure.arrivals()] == [200, 400, 400]


def test_healthy_vm_with_proxy_and_redirect_costs_imds_one_request(azure: Azure) -> None:
    with azure.running_proxy() as proxy:
        azure.redirect()
        before = len(azure.arrivals())
        report = check(azure)
        assert report.troubles() == {}
        assert len(azure.arrivals()) - before == 1
        assert "error" not in proxy.log
    for step in ("answer", "guard", "clock"):
        assert report.steps[step]["asked"] == f"the proxy at http://127.0.0.1:{PROXY_PORT}"
    assert report.steps["bypass"]["asked"] == "169.254.169.254 through the redirect"
    assert f"user {PROXY_USER}" in report.found("port")
    assert f"except those of user {PROXY_USER}" in report.found("redirect")


def test_requests_are_at_least_a_second_apart(azure: Azure) -> None:
    check(azure, "--identity")
    times = [arrival.at for arrival in azure.arrivals()]
    assert len(times) == 4
    # They are spaced when they are sent; on the way to IMDS a busy machine adds to one and not to the next.
    assert times[-1] - times[0] > 2.5


def test_ordinary_user_learns_what_root_has_to_be_asked(azure: Azure) -> None:
    with azure.running_proxy():
        azure.redirect()
        report = check(azure, user=ORDINARY_USER)
    assert report.troubles() == {}
    assert report.code("redirect") == "redirect-unknown"
    assert "root" in report.steps["redirect"]["next"]


def test_token_is_asked_for_on_demand_only_and_never_shown(azure: Azure) -> None:
    with azure.running_proxy():
        assert check(azure).code("identity") == "identity-not-asked"
        assert azure.arrivals("/metadata/identity/oauth2") == []
        done = azure.vm.run(sys.executable, "-m", *CHECK, "--identity")
        assert "s to live" in done.stdout
        assert "eyJ" not in done.stdout + done.stderr
        unknown = check(azure, "--identity", "00000000-0000-0000-0000-000000000000")
        assert unknown.code("identity") == "identity-none"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("route del 169.254.169.254", "route del default"), "route-missing"),
        (("route replace blackhole 169.254.169.254",), "route-blocked"),
        (("route replace prohibit 169.254.169.254",), "route-blocked"),
        (("route replace unreachable 169.254.169.254",), "route-blocked"),
        (("addr add 169.254.169.254/32 dev lo",), "route-local"),
        (("route replace 169.254.169.254 dev cbr0 src 10.244.0.1",), "route-interface"),
        (
            ("addr add 169.254.1.156/16 dev cbr0", "route del 169.254.169.254"),
            "route-link-local",
        ),
    ],
)
def test_wrong_route_is_named(azure: Azure, change: tuple[str, ...], code: str) -> None:
    azure.vm.ip(*change)
    report = check(azure, "--connect-timeout", "0.3", "--read-timeout", "0.3")
    assert report.code("route") == code
    assert report.exit_status > 0


def test_advice_of_a_missing_route_repairs_it(azure: Azure) -> None:
    azure.vm.ip("route add 168.63.129.16 via 10.0.0.1 dev eth0", "route del 169.254.169.254", "route del default")
    report = check(azure, "--connect-timeout", "0.3", "--read-timeout", "0.3")
    assert (report.code("route"), report.code("answer")) == ("route-missing", "imds-unreachable")
    command = report.steps["route"]["next"].partition(";")[0]
    assert command == "ip route add 169.254.169.254/32 via 10.0.0.1 dev eth0"
    azure.vm.run(*command.split())
    assert check(azure).troubles() == {}


def test_route_of_a_rule_for_other_tables_is_followed(azure: Azure) -> None:
    azure.vm.ip("rule add to 169.254.169.254 lookup 100", "route add 169.254.169.254 dev cbr0 table 100")
    assert check(azure, "--connect-timeout", "0.3", "--read-timeout", "0.3").code("route") == "route-interface"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"status": 410}, "imds-updating"),
        ({"status": 429}, "imds-throttled"),
        ({"status": 500}, "imds-failing"),
        ({"status": 403}, "imds-forbidden"),
        ({"status": 200, "body": "<html>"}, "imds-other"),
        ({"hang": True}, "imds-timeout"),
        ({"reset": True}, "imds-broken"),
        ({"garbage": True}, "imds-broken"),
        ({"truncate": True}, "imds-broken"),
    ],
)
def test_answer_of_imds_is_named(azure: Azure, fault: dict[str, Any], code: str) -> None:
    azure.faults(fault)
    report = check(azure, "--connect-timeout", "0.3", "--read-timeout", "0.3")
    assert report.code("answer") == code
    if fault.get("status") == 429:
        assert report.code("throttling") == "throttled-by-others"


def test_slow_imds_is_reported(azure: Azure) -> None:
    azure.faults({"latency": 1.2})
    assert check(azure).code("latency") == "latency-high"


def test_imds_that_fails_behind_the_proxy_is_reported_with_the_proxys_words(azure: Azure) -> None:
    with azure.running_proxy(retry_max=0):
        azure.faults({"status": 500})
        assert check(azure).code("answer") == "imds-failing"
        # At once again, the proxy answers from its cache, which shows nothing.
        assert check(azure).code("answer") in {"answer-cached", "ok"}
        azure.imds.ip("addr del 169.254.169.254/32 dev lo")
    with azure.running_proxy(page="/-/healthy", retry_max=0, connect_timeout=0.5):
        failing = check(azure)
        assert failing.code("answer") in {"proxy-failing", "proxy-silent"}
        assert "http://169.254.169.254" in failing.found("answer")


def test_429s_of_others_are_counted_through_the_proxy(azure: Azure) -> None:
    with azure.running_proxy() as proxy:
        azure.faults({"status": 429, "times": 1})
        wait_until(lambda: proxy.get(INSTANCE).status == 200)
        assert check(azure).code("throttling") == "throttled-by-others"


def test_direct_caller_is_named_by_its_user(azure: Azure) -> None:
    azure.vm.nft("flush ruleset")
    waiting = "import socket; s = socket.create_connection(('169.254.169.254', 80)); s.recv(1)"
    with azure.vm.start(sys.executable, "-ISc", waiting, user=ORDINARY_USER):

        def is_named() -> bool:
            return f"now: {ORDINARY_USER}" in check(azure).found("throttling")

        wait_until(is_named, 30)


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        (b'HTTP/1.1 200 OK\r\nServer: IMDS/1\r\n\r\n{"apiVersions":["2025-04-07"]}', "guard-metadata"),
        (b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n<html>", "imds-other"),
    ],
)
def test_something_else_at_the_address_is_not_taken_for_imds(azure: Azure, answers: bytes, code: str) -> None:
    azure.vm.ip("addr add 169.254.169.254/32 dev lo")
    with serving(azure, "169.254.169.254", 80, answers):
        report = check(azure)
    assert report.code("route") == "route-local"
    assert code in report.troubles().values()


def test_taken_port_is_named_with_its_program(azure: Azure) -> None:
    with serving(azure, "127.0.0.1", PROXY_PORT, b"HTTP/1.1 200 OK\r\n\r\n"):
        report = check(azure)
    assert report.code("port") == "port-taken"
    assert "process" in report.found("port")


def _folder_of_the_proxy(folder: Path) -> Path:
    """Make a folder of the proxy's user, which that user can reach."""
    folder.mkdir()
    shutil.chown(folder, PROXY_USER, PROXY_USER)
    for above in folder.parents:
        if above.stat().st_uid == os.getuid() and above not in {Path("/"), Path("/tmp")}:
            above.chmod(0o755)
    return folder


def test_sockets_and_admin_port_of_the_running_proxy_are_its_own(azure: Azure, tmp_path: Path) -> None:
    folder = _folder_of_the_proxy(tmp_path / "run")
    with azure.running_proxy(uds=folder / "s", admin_port=9256):
        report = check(azure, "--uds", str(folder / "s"), "--admin-port", "9256")
        # By the socket alone, if the port of the settings is another.
        by_socket = check(azure, "--uds", str(folder / "s"), "--port", "9999")
    assert report.troubles() == {}
    for step in ("port", "admin-port", "socket"):
        assert f"user {PROXY_USER}" in report.found(step)
    assert by_socket.steps["answer"]["asked"] == f"the proxy at unix:{folder / 's'}"


def test_redirect_without_a_proxy_is_a_failure(azure: Azure) -> None:
    azure.redirect()
    report = check(azure)
    assert (report.code("redirect"), report.code("answer")) == ("redirect-unanswered", "imds-redirected")
    azure.vm.run(sys.executable, "-m", "imdsproxy", "redirect", "--load", "--remove")
    assert check(azure).troubles() == {}


def test_wrong_exempt_user_is_named_with_the_command_that_repairs_it(azure: Azure) -> None:
    with azure.running_proxy():
        azure.redirect(user=9999)
        report = check(azure)
        assert (report.code("redirect"), report.code("answer")) == ("redirect-user", "proxy-loop")
        command = report.steps["redirect"]["next"].split()
        azure.vm.run(sys.executable, "-m", *command)
        assert check(azure).troubles() == {}


def test_exclusive_redirect_for_a_wrong_user_is_told_from_a_taken_port(azure: Azure) -> None:
    with azure.running_proxy() as proxy:
        azure.redirect("--exclusive", user=9999)
        report = check(azure, "--connect-timeout", "0.3", "--read-timeout", "0.3")
        assert report.code("redirect") == "redirect-mute"
        azure.vm.run(sys.executable, "-m", *report.steps["redirect"]["next"].partition(": ")[2].split())
        assert check(azure).troubles() == {}
        assert proxy.answers("/-/healthy")


def test_redirect_to_another_port_and_for_root_are_named(azure: Azure) -> None:
    with azure.running_proxy():
        azure.redirect("--port", "9254")
        assert check(azure).code("redirect") == "redirect-elsewhere"
        azure.vm.nft("delete chain ip imdsproxy output")
        assert check(azure).code("redirect") == "redirect-empty"
    azure.redirect(user=ROOT_USER)
    with azure.vm.start(
        sys.executable, "-m", "imdsproxy", env={"IMDSPROXY_PORT": str(PROXY_PORT)}, log=azure.folder / "roots.log"
    ):
        wait_until(lambda: check(azure).code("port") == "ok" and "answers" in check(azure).found("port"), 60)
        report = check(azure)
    assert (report.code("redirect"), report.code("bypass")) == ("redirect-root", "bypass-exempt-user")


def test_earlier_rule_that_leads_calls_past_the_redirect_is_named(azure: Azure) -> None:
    azure.imds.ip("addr add 10.0.0.9/32 dev lo")
    azure.imds.ip("addr add 10.0.0.9/24 dev subnet")
    with azure.running_proxy():
        azure.redirect()
        azure.vm.nft(
            "table ip theirs { chain out { type nat hook output priority -120; "
            f"ip daddr 169.254.169.254 tcp dport 80 meta skuid != {PROXY_USER} dnat to 10.0.0.9:80; }}; }}"
        )
        report = check(azure)
    assert (report.code("bypass"), report.code("other-rules")) == ("bypass-earlier-rule", "other-redirect")
    assert "10.0.0.9:80" in report.found("bypass")


def test_rule_that_blocks_imds_is_named(azure: Azure) -> None:
    azure.vm.nft(
        "table inet theirs { set banned { type ipv4_addr; flags interval; elements = { 169.254.0.0/16 }; }; "
        "chain jumped { ip daddr @banned reject; }; chain out { type filter hook output priority 0; jump jumped; }; }"
    )
    report = check(azure, "--connect-timeout", "0.3", "--read-timeout", "0.3")
    assert report.code("other-rules") == "other-block"
    assert "chain jumped" in report.found("other-rules")
    assert report.code("answer") == "imds-refused"


def test_pods_that_a_node_redirect_would_let_around_aks_restriction_are_reported(azure: Azure) -> None:
    if shutil.which("iptables-nft") is None:
        pytest.skip("iptables-nft is not installed")
    # As AKS has it: iptables, FORWARD, with a comment.
    restriction = "-I FORWARD -d 169.254.169.254/32 -p tcp --dport 80 -m comment --comment managed -j DROP"
    azure.vm.run("iptables-nft", *restriction.split())
    with azure.running_proxy():
        assert "pods are kept from IMDS" in check(azure).found("pod-restriction")
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        azure.redirect("--node")
        report = check(azure)
        assert report.code("pod-restriction") == "pod-restriction-bypassed"
        # What it warns of is so.
        assert azure.bridged.fetch(INSTANCE).by_proxy
        assert check(azure, "--deny", "/metadata/identity").code("pod-restriction") == "ok"


def test_pod_identitys_own_redirect_is_named(azure: Azure) -> None:
    if shutil.which("iptables-nft") is None:
        pytest.skip("iptables-nft is not installed")
    for line in (
        "-N aad-metadata",
        "-A PREROUTING -j aad-metadata",
        "-A aad-metadata -d 169.254.169.254/32 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.4:2579",
    ):
        azure.vm.run("iptables-nft", "-t", "nat", *line.split())
    report = check(azure)
    assert report.code("other-rules") == "other-redirect"
    assert "chain aad-metadata" in report.found("other-rules")


@KUBE_PROXY
def test_route_localnet_is_judged_by_what_the_redirect_needs(azure: Azure) -> None:
    with azure.running_proxy():
        azure.redirect("--node")
        assert check(azure).code("route-localnet") == "route-localnet-off"
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        assert check(azure).troubles() == {}
        azure.vm.nft("delete chain ip imdsproxy guard")
        assert check(azure).code("route-localnet") == "route-localnet-unguarded"
        azure.vm.run(sys.executable, "-m", "imdsproxy", "redirect", "--load", "--remove")
        assert check(azure).code("route-localnet") == "route-localnet-open"


@KUBE_PROXY
def test_node_is_recognised_by_its_processes_and_interfaces(azure: Azure, tmp_path: Path) -> None:
    """The programs are sleep(1) under other names: what counts is what the kernel says of a process."""
    programs = {name: tmp_path / name for name in ("kubelet", "kube-proxy", "azure-proxy-agent")}
    for path in programs.values():
        shutil.copy(shutil.which("sleep") or "", path)
        path.chmod(0o755)
    with azure.running_proxy(), contextlib.ExitStack() as stack:
        azure.vm.sysctl(ROUTE_LOCALNET, 1)
        azure.redirect("--node")
        azure.vm.ip("link add name cilium_host type veth peer name cilium_net")
        stack.enter_context(azure.vm.start(str(programs["kubelet"]), "60"))
        stack.enter_context(azure.vm.start(str(programs["azure-proxy-agent"]), "60"))
        wait_until(lambda: check(azure).code("node") == "node-cilium", 30)
        report = check(azure)
        assert "without kube-proxy" in report.found("node")
        assert report.code("agent") == "agent-runs"
        stack.enter_context(azure.vm.start(str(programs["kube-proxy"]), "60"))
        wait_until(lambda: "with kube-proxy" in check(azure).found("node"), 30)


def test_budget_file_is_judged_with_those_who_share_it(azure: Azure, tmp_path: Path) -> None:
    folder = _folder_of_the_proxy(tmp_path / "shared")
    file = folder / "budget"
    nowhere = ("--upstream", "http://127.0.0.1:9")
    flag = ("--budget-file", str(file), *nowhere)
    missing = check(azure, "--budget-file", str(folder / "none" / "budget"), *nowhere)
    assert missing.code("budget-file") == "budget-file-folder"
    assert "is not there yet" in check(azure, *flag).found("budget-file")
    with azure.running_proxy(budget_file=file):
        assert f"user {PROXY_USER})" in check(azure, *flag).found("budget-file")
        with azure.running_proxy(port=9254, budget_file=file, budget_requests=4):
            report = check(azure, *flag)
            assert report.code("budget-file") == "budget-file-settings"
            assert "4 in 1 s" in report.found("budget-file")
            assert report.found("budget-file").count("process ") == 2
    assert "no process that can be seen" in check(azure, *flag).found("budget-file")
    before = file.read_bytes()
    file.write_bytes(before[:-1])
    assert check(azure, *flag).code("budget-file") == "budget-file-damaged"
    file.write_bytes(b"something else")
    assert check(azure, *flag).code("budget-file") == "budget-file-foreign"
    file.write_bytes(before)
    file.chmod(0o666)
    assert check(azure, *flag).code("budget-file") == "budget-file-distrusted"
    file.chmod(0o660)
    folder.chmod(0o777)
    assert check(azure, *flag).code("budget-file") == "budget-file-exposed"
    file.rename(folder / "moved")
    file.symlink_to(folder / "moved")
    assert check(azure, *flag).code("budget-file") == "budget-file-distrusted"
    assert (folder / "moved").read_bytes() == before


def test_web_proxy_that_would_catch_calls_is_reported_and_not_used(azure: Azure) -> None:
    caught = {"http_proxy": "http://user:secret@10.0.0.77:3128"}
    report = check(azure, env=caught)
    assert report.troubles() == {"web-proxy": "web-proxy-catches"}
    assert "secret" not in json.dumps(report.steps)
    assert check(azure, env={**caught, "no_proxy": "169.254.169.254"}).troubles() == {}
    assert check(azure, env={"http_proxy": f"http://127.0.0.1:{PROXY_PORT}"}).troubles() == {}


def test_wrong_clock_is_reported(azure: Azure, tmp_path: Path) -> None:
    late = b"HTTP/1.1 200 OK\r\nServer: IMDS/1\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
    with serving(azure, "127.0.0.1", 8300, late + b'{"apiVersions":["2025-04-07"]}'):
        report = check(azure, "--upstream", "http://127.0.0.1:8300")
    assert report.code("clock") == "clock-wrong"


def test_unusable_settings_ask_nobody(azure: Azure) -> None:
    report = check(azure, "--port", "banana")
    assert report.troubles() == {"settings": "settings-invalid"}
    assert azure.arrivals() == []
    assert check(azure, "--warmup", "/metadata/%zz").code("settings") == "settings-start"


def test_upstream_elsewhere_never_calls_imds(azure: Azure) -> None:
    azure.redirect()
    check(azure, "--upstream", "http://127.0.0.1:9")
    assert azure.arrivals() == []


def test_text_is_for_people_and_coloured_on_a_terminal_only(azure: Azure) -> None:
    command = (sys.executable, "-m", "imdsproxy", "check")
    done = azure.vm.run(*command)
    assert done.stdout.startswith("ok       settings ")
    assert done.stdout.endswith("1 not checked\n")
    assert "\x1b" not in done.stdout
    script = ["script", "--quiet", "--return", "--command", " ".join(command), "/dev/null"]
    if shutil.which("script") is None:
        pytest.skip("script(1) is not installed")
    assert "\x1b[32mok" in azure.vm.run(*script, env={"TERM": "xterm"}).stdout
    assert "\x1b" not in azure.vm.run(*script, env={"TERM": "xterm", "NO_COLOR": "1"}).stdout


def test_neighbour_on_another_card_is_no_matter(azure: Azure) -> None:
    """A second network card with a default route of a higher metric changes nothing."""
    link(azure.vm, "eth1", azure.imds, "second")
    azure.vm.ip("addr add 10.1.0.4/24 dev eth1", "route add default via 10.1.0.1 dev eth1 metric 200")
    assert check(azure).code("route") == "ok"
