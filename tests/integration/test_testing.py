"""`imdsproxy.testing` in projects of their own: the recipes of the page, failures, and what the plugin imports."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imdsproxy.testing import ProxyStartError, emulator, proxy
from tests import documents
from tests.kit import ROOT, get, wait_for_log, wait_until
from tests.targets import INSTANCE

pytestmark = [pytest.mark.process, pytest.mark.any_python]

PAGE = ROOT / "docs" / "testing-your-code.md"
RECIPES = [block for block in documents.blocks(PAGE) if block.language == "python"]
WORKFLOW = ROOT / "config" / "github" / "imds-tests.yaml"
FAILING = """
import sys, urllib.request
import pytest

def test_plugin_imports_little():
    ours = {name for name in sys.modules if name.split(".")[0] == "imdsproxy"}
    assert ours == {"imdsproxy", "imdsproxy.testing", "imdsproxy.testing.plugin"}
    assert not {"httpx", "uvicorn", "starlette"} & set(sys.modules)

def test_fails(imds, imdsproxy):
    urllib.request.urlopen(f"{imds.url}/-/healthy")
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{imds.url}/metadata/versions")
    assert imds.asked() == 0

@pytest.mark.imds(ratee=0)
def test_option(imds): pass

@pytest.mark.imdsproxy(max_waitt=2)
def test_setting(imdsproxy): pass

@pytest.mark.imds("fast")
def test_marker(imds): pass

@pytest.mark.parametrize("imds", ["fast"], indirect=True)
def test_parameter(imds): pass

class TestOfItsOwn:
    @pytest.fixture
    def imds(self): return "its own"

    def test_fixture(self, imds): assert imds == "its own", "the project's fixture is used"
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a project, with the plugin as it is installed."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -W error\n", encoding="ascii")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "IMDSPROXY_PORT": "not for the proxy of a test"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_plugin_is_there_once_the_package_is_installed() -> None:
    (found,) = importlib.metadata.entry_points(group="pytest11", name="imdsproxy")
    assert found.value == "imdsproxy.testing.plugin"


@pytest.mark.client
def test_recipes_pass(tmp_path: Path) -> None:
    """They run in two processes of pytest-xdist."""
    for block in RECIPES:
        name = f"test_line_{block.line}.py" if "def test_" in block.text else "region.py"
        (tmp_path / name).write_text(block.text, encoding="utf-8")
    done = run(tmp_path, "-n", "2")
    assert done.returncode == 0, done.stdout
    assert len(RECIPES) > 5
    assert " skipped" not in done.stdout


def test_workflow_installs_a_checkout_and_runs_pytest() -> None:
    steps = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["tests"]["steps"]
    (place,) = [step["with"]["path"] for step in steps if "path" in step.get("with", {})]
    install, test = (step for step in steps if "run" in step)
    assert install["working-directory"] == place
    assert (ROOT / install["run"].partition(" -r ")[2].split()[0]).is_file()
    assert install["run"].splitlines()[1].endswith(" .")
    assert test["run"] == "python -m pytest"


def test_failures_are_told_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING, encoding="utf-8")
    done = run(tmp_path)
    assert "2 passed" in done.stdout, done.stdout
    assert "1 failed" in done.stdout
    assert "4 errors" in done.stdout
    assert "the emulated IMDS has no option ratee; it has " in done.stdout
    assert "imdsproxy: IMDSPROXY_MAX_WAITT is not a setting; did you mean IMDSPROXY_MAX_WAIT?" in done.stdout
    assert "the marker imds takes keywords only" in done.stdout
    assert "a parameter of the fixture imds is a dict of its options, not 'fast'" in done.stdout
    assert "requests at the emulated IMDS" in done.stdout
    assert "1 reached IMDS, at most 1 of them in one second" in done.stdout
    assert "log of imdsproxy" in done.stdout
    assert "imdsproxy.ops.readiness ready" in done.stdout
    assert "plugin.py" not in done.stdout, "a mistake is told without the plugin's own code"


def test_proxy_runs_in_front_of_a_url_and_counts_what_tests_cause() -> None:
    with emulator(environment=False) as imds:
        with proxy(imds.url, environment=False, access_log=True) as running:
            assert imds.asked("/metadata/versions") == 1
        with proxy(imds, environment=False, access_log=True) as running:
            assert imds.asked() == 0
            assert [get(running.port, INSTANCE).status for _ in range(3)] == [200] * 3
            assert imds.asked() == 1
            assert running.metric("imdsproxy_requests_total") == 3
            assert running.status()["requests"]["sent_to_imds"] >= 1
            assert wait_for_log(running, " outcome=hit", times=2) == 2
            process = running.process
        assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
def test_proxy_ends_when_its_test_run_is_killed() -> None:
    """Its standard input ends then, whatever ended the run."""
    program = (
        "import sys\nfrom imdsproxy.testing import proxy\n"
        "with proxy('http://127.0.0.1:9', ready=False, environment=False) as running:\n"
        "    print(running.process.pid, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = Path("/proc", process.stdout.readline().strip())
        assert b"imdsproxy.testing.child" in (child / "cmdline").read_bytes()
        process.kill()
    wait_until(lambda: not child.exists() or "(zombie)" in (child / "status").read_text(encoding="ascii"))


def test_proxy_that_does_not_get_ready_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imdsproxy.testing.running.READY", 0.2)
    with emulator(environment=False) as imds:
        imds.fail(503)
        with pytest.raises(ProxyStartError, match=r"is not ready after 0.2 s: .*IMDS.*; ready=False does not wait"):
            proxy(imds, environment=False).__enter__()
