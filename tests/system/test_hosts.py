"""The hosts of `hosts.py` have the properties that other tests rely on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.kit import ROOT, wait_until
from tests.system.hosts import ROOT_USER, Host
from tests.system.topology import ORDINARY_USER, Azure
from tests.targets import INSTANCE

pytestmark = pytest.mark.system

_THIS_NETWORK = Path("/proc/thread-self/ns/net")


@pytest.mark.parametrize("name", ["vm", "neighbour", "routed", "bridged"])
def test_every_host_reaches_imds_without_a_redirect(azure: Azure, name: str) -> None:
    host: Host = getattr(azure, name)
    for user in (ROOT_USER, ORDINARY_USER):
        answer = host.fetch(INSTANCE, user=user)
        assert (answer.status, answer.by_proxy, answer.error) == (200, False, "")
    assert [arrival.target for arrival in azure.arrivals()] == [INSTANCE, INSTANCE]


def test_faults_at_imds_are_added_and_removed(azure: Azure) -> None:
    azure.faults({"status": 410})
    assert azure.vm.fetch(INSTANCE).status == 410
    azure.no_faults()
    assert azure.vm.fetch(INSTANCE).status == 200
    assert [arrival.status for arrival in azure.arrivals()] == [410, 200]
    azure.event(EventType="Reboot")
    assert b"Reboot" in azure.vm.fetch("/metadata/scheduledevents?api-version=2020-07-01").body


def test_only_the_entering_thread_is_inside_the_host() -> None:
    before = _THIS_NETWORK.readlink()
    seen: list[Path] = []
    with Host("one") as one, Host("other") as other:
        bystander = threading.Thread(target=lambda: seen.append(_THIS_NETWORK.readlink()))
        with one.inside():
            first = _THIS_NETWORK.readlink()
            with other.inside():
                second = _THIS_NETWORK.readlink()
            assert _THIS_NETWORK.readlink() == first
        bystander.start()
        bystander.join()
    assert len({before, first, second}) == 3
    assert seen == [before] == [_THIS_NETWORK.readlink()]


def test_command_runs_as_the_given_user() -> None:
    with Host("one") as one:
        assert one.run("id", "-u").stdout == "0\n"
        assert one.run("id", "-u", "-n", user=0).stdout == "root\n"
        assert one.run("id", "-u", user=ORDINARY_USER).stdout == f"{ORDINARY_USER}\n"
        with pytest.raises(AssertionError, match=r"one: .*false.* gave 1"):
            one.run("false")
        assert one.run("false", check=False).returncode == 1


def test_killed_test_run_leaves_no_process_and_no_namespace_behind(tmp_path: Path) -> None:
    script = """
import sys, time
from tests.system.hosts import ROOT_USER, Host
from tests.targets import INSTANCE
with Host("one") as one, one.start("sleep", "300", user=int(sys.argv[1])) as process, one.inside():
    import os
    print(process.pid, os.readlink("/proc/thread-self/ns/net"), flush=True)
    time.sleep(300)
"""
    for user in ("0", str(ORDINARY_USER)):
        run = subprocess.Popen([sys.executable, "-c", script, user], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert run.stdout
            pid, network = run.stdout.readline().split()
            assert str(Path("/proc", pid, "ns", "net").readlink()) == network
            run.kill()
            run.wait(60)
            wait_until(lambda pid=pid: not Path("/proc", pid).exists() or _ended(pid))
            assert network not in _networks()
        finally:
            run.kill()
            run.communicate()


def _ended(pid: str) -> bool:
    """Return whether a process is a zombie, whose new parent may never read its exit status."""
    return Path("/proc", pid, "stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"


def _networks() -> set[str]:
    """Return the networks of all processes on this machine."""
    found = set()
    for process in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            found.add(str(process.readlink()))
    return found
