"""What a proxy loads: with default settings, nothing that only a setting, a command or a library of tests needs.

Each module takes memory as long as the proxy runs, and time at each start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kit import get, running_proxy

pytestmark = [pytest.mark.any_python, pytest.mark.process]

LIBRARIES = {
    *("anyio", "cachetools", "certifi", "click", "h11", "httpcore", "httptools", "httpx", "idna", "prometheus_client"),
    *("sniffio", "starlette", "typing_extensions", "uvicorn", "uvloop"),
    *("h2", "hpack", "hyperframe"),  # httpcore imports them where another package needs them, as here
    "coverage",  # measures processes in long runs of the tests
}
"""The libraries of serving, and what they import."""
NOT_BY_DEFAULT = {
    "imdsproxy.access.decision": "ACCESS_FILE",
    "imdsproxy.access.document": "ACCESS_FILE",
    "imdsproxy.access.enforcement": "ACCESS_FILE",
    "imdsproxy.access.groups": "ACCESS_FILE",
    "imdsproxy.access.guard": "ACCESS_FILE",
    "imdsproxy.access.rules": "ACCESS_FILE",
    "imdsproxy.budget.joining": "BUDGET_FILE",
    "imdsproxy.budget.shared": "BUDGET_FILE",
    "imdsproxy.cache.handover": "HANDOVER_FILE",
    "imdsproxy.parts.handover": "HANDOVER_FILE",
    "imdsproxy.ops.otlp": "TRACES",
    "imdsproxy.ops.traces": "TRACES",
    "imdsproxy.server.traced": "TRACES",
    "imdsproxy.parts.extras": "TRACES, PODS_OF_NODE",
    "imdsproxy.peers.kubernetes": "PODS_OF_NODE",
    "imdsproxy.peers.pod_watch": "PODS_OF_NODE",
    "imdsproxy.peers.pods": "PODS_OF_NODE",
    "imdsproxy.settings.load": "read in a child process",
    "imdsproxy.settings.model": "read in a child process",
    "tomllib": "CONFIG_FILE, ACCESS_FILE",
    "argparse": "read in a child process",
}
COMMANDS = {"command_line", "main", "private_memory", "serve", "standard_streams", "startup_checks"}
"""The modules of `cli/` that serving uses."""


def loaded(folder: Path, **settings: Any) -> dict[str, bool]:
    """Run a proxy, send it a request to be forwarded and one for each page, and return the modules it has loaded.

    A module's value is whether it belongs to an installed package.
    """
    names = folder / "modules"
    with running_proxy(
        folder, module="tests.loaded", arguments=[str(names)], fresh=True, ready=False, max_wait=1, **settings
    ) as proxy:
        for page in ("healthy", "ready", "metrics", "status", "status.json"):
            assert get(proxy.port, f"/-/{page}").status in {200, 503}
        assert get(proxy.port, "/metadata/instance?api-version=2021-02-01").status == 502
    lines = names.read_text(encoding="ascii").splitlines()
    return {line.partition(" ")[0]: line.endswith(" installed") for line in lines}


@pytest.fixture(scope="module")
def by_default(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    return loaded(tmp_path_factory.mktemp("proxy"), upstream="http://127.0.0.1:9")


def test_modules_of_options_are_not_loaded_by_default(by_default: dict[str, bool]) -> None:
    assert not {name: NOT_BY_DEFAULT[name] for name in NOT_BY_DEFAULT.keys() & by_default.keys()}


def test_rooms_that_serving_does_not_use_are_not_loaded(by_default: dict[str, bool]) -> None:
    ours = [name.split(".") for name in by_default if name.startswith("imdsproxy.")]
    assert not {name[1] for name in ours} & {"emulator", "testing"}
    assert {name[2] for name in ours if name[1] == "cli" and len(name) > 2} <= COMMANDS
    assert {name[2] for name in ours if name[1] == "settings" and len(name) > 2} == {"forked_loader"}


def test_no_other_library_is_loaded(by_default: dict[str, bool]) -> None:
    installed = {name.partition(".")[0] for name, is_installed in by_default.items() if is_installed}
    # Tools for installing packages start names with an underscore; mypyc and Cython name parts of libraries like that.
    assert {name for name in installed if not name.startswith("_")} - {"imdsproxy"} <= LIBRARIES
    assert "uvicorn" in installed


def test_modules_of_access_rules_are_loaded_with_a_file(tmp_path: Path) -> None:
    """The other side: an option whose modules were gone altogether would pass the tests above."""
    file = tmp_path / "access.toml"
    file.write_text('default = "allow"', encoding="ascii")
    names = loaded(tmp_path, upstream="http://127.0.0.1:9", access_file=file)
    wanted = {name for name, setting in NOT_BY_DEFAULT.items() if setting == "ACCESS_FILE"}
    assert wanted <= names.keys()
