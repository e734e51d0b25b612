"""The commands in the documents, run against one proxy in front of the emulator.

`tests/documents.py` says which blocks are run. The places of an installed proxy are replaced by those of the test's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from tests import documents
from tests.documents import Block
from tests.kit import ROOT, ProxyProcess, environment, free_port, running_proxy
from tests.targets import INSTANCE

pytestmark = [
    pytest.mark.process,
    pytest.mark.any_python,
    pytest.mark.skipif(sys.platform == "win32", reason="the commands are for bash"),
]

RUN = [block for page in documents.documents() for block in documents.blocks(page) if block.runs]
_TIMEOUT = 60


@dataclass(frozen=True)
class Machine:
    """A machine with a running proxy and an emulated IMDS, as the commands find it."""

    proxy: ProxyProcess
    imds: EmulatorServer
    folder: Path
    env: dict[str, str]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in bash, which ends at the first failure."""
        here = command.replace("127.0.0.1:8254", f"127.0.0.1:{self.proxy.port}")
        here = here.replace("127.0.0.1:8255", f"127.0.0.1:{self.imds.port}")
        here = here.replace("/run/imdsproxy/", f"{self.folder}/").replace("/opt/imdsproxy/bin/", "")
        assert "169.254.169.254" not in here, "only a namespace may have this address; mark the block"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", here],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=_TIMEOUT,
            check=False,
        )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if shutil.which("curl") is None:
        pytest.skip("not installed: curl")
    folder = tmp_path_factory.mktemp("machine")
    # Pages begin in a checkout, whose settings for pytest hold there.
    shutil.copy(ROOT / "pyproject.toml", folder)
    with run_in_thread(Emulator(rate=0, identity_rate=0)) as imds:
        settings: dict[str, Any] = {
            "port": free_port(),
            "admin_port": free_port(),
            "uds": folder / "imdsproxy.sock",
            "upstream": imds.url,
            "warmup": INSTANCE,
            "budget_requests": 100,
        }
        with running_proxy(folder, **settings) as proxy:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            yield Machine(proxy, imds, folder, environment(**settings) | {"PATH": path, "no_proxy": "*"})


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """Return the commands of a block, each with the lines that it is shown to print."""
    if block.language == "sh":
        return [(block.text, [])]
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line:
            found[-1][1].append(line)
    return found


def pattern(line: str) -> str:
    """Return what a printed line has to match: any number stands for any other, and … for any text."""
    return ".*".join(re.sub(r"[0-9]+", "[0-9]+", re.escape(part)) for part in line.split("…"))


@pytest.mark.parametrize("block", RUN, ids=str)
def test_commands_of_a_document_succeed_and_print_what_it_shows(machine: Machine, block: Block) -> None:
    for command, shown in commands(block):
        done = machine.run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        printed = iter(done.stdout.splitlines())
        for line in shown:
            assert any(re.search(pattern(line), each) for each in printed), f"{line!r} is not in\n{done.stdout}"


def test_some_commands_are_run() -> None:
    assert {documents.name(block.path) for block in RUN} >= {
        "README.md",
        "docs/status.md",
        "docs/configuration.md",
        "docs/emulator.md",
    }


def test_failing_command_and_missing_output_are_noticed(machine: Machine) -> None:
    missing = Block(ROOT / "README.md", 1, "console", "$ echo one 12\none 7\ntwo\n")
    with pytest.raises(AssertionError, match="'two' is not in"):
        test_commands_of_a_document_succeed_and_print_what_it_shows(machine, missing)
    failing = Block(ROOT / "README.md", 1, "sh", "false\necho done\n")
    with pytest.raises(AssertionError, match="false"):
        test_commands_of_a_document_succeed_and_print_what_it_shows(machine, failing)
    with pytest.raises(AssertionError, match="only a namespace"):
        machine.run("curl http://169.254.169.254/")
