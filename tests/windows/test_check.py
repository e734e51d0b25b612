"""`imdsproxy check` on Windows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.windows.wine import Windows

pytestmark = [pytest.mark.process, pytest.mark.windows]

NETWORK = """
import json, winreg
from imdsproxy.cli.check.probes import windows_network as network
before = network.port_proxy()
with winreg.CreateKey(winreg.HKEY_LOCAL_MACHINE, network._PORT_PROXY) as key:
    winreg.SetValueEx(key, "169.254.169.254/80", 0, winreg.REG_SZ, "10.0.0.9/8080")
after = network.port_proxy()
winreg.DeleteKey(winreg.HKEY_LOCAL_MACHINE, network._PORT_PROXY)
names = [process.name.lower() for process in network.processes_on_windows()]
print(json.dumps({
    "port_proxy": [before, after],
    "python": "python.exe" in names,
    "agent": network.agent_on_windows() is not None,
    "local": network.route_on_windows("127.0.0.1").reach,
    "imds": network.route_on_windows("169.254.169.254").reach,
}))
"""


def checked(windows: Windows, *flags: str, **settings: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the command; return its exit status and its findings."""
    done = windows.run("check", "--json", *flags, **settings)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["exit_status"] == done.returncode
    return done.returncode, {step["step"]: step for step in report["steps"]}


def test_check_against_the_emulator_is_well(windows: Windows, imds: EmulatorServer) -> None:
    status, steps = checked(windows, "--identity", upstream=imds.url, port=0)
    assert {step["status"] for step in steps.values()} <= {"ok", "skipped"}, steps
    assert status == 0
    assert steps["answer"]["asked"] == imds.url
    assert "s to live" in steps["identity"]["found"]
    assert "no portproxy" in steps["other-rules"]["found"]


def test_running_proxy_is_found_and_asked(windows: Windows, imds: EmulatorServer) -> None:
    with windows.proxy(upstream=imds.url) as proxy:
        port = proxy.port()
        proxy.wait_for("readiness ready")
        status, steps = checked(windows, upstream=imds.url, port=port)
        if steps["answer"]["code"] == "proxy-silent":
            # Wine's server, through which both processes go, can stand still for longer than the check's ten seconds
            # while other tests load the machine. A proxy that does not answer fails the second time, too.
            status, steps = checked(windows, upstream=imds.url, port=port)
    assert [step for step in steps.values() if step["status"] not in {"ok", "skipped"}] == []
    assert status == 0
    assert f"answers at 127.0.0.1:{port}" in steps["port"]["found"]
    assert steps["answer"]["asked"] == f"the proxy at http://127.0.0.1:{port}"


def test_failure_and_mistake_have_exit_status_2(windows: Windows) -> None:
    status, steps = checked(windows, port=0, connect_timeout=1, read_timeout=1)
    assert (status, steps["answer"]["code"]) == (2, "imds-refused")
    status, steps = checked(windows, port="banana")
    assert (status, steps["settings"]["code"]) == (2, "settings-invalid")


def test_windows_own_tables_are_read(windows: Windows) -> None:
    done = windows.run_python("-c", NETWORK)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["port_proxy"] == ["", "10.0.0.9:8080"]
    assert (found["python"], found["agent"], found["local"]) == (True, False, "local")
    # The tests' own network has a loopback and nothing else.
    assert found["imds"] == "no route"
