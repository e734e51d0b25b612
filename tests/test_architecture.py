"""Rooms import only lower floors, and the pure rooms import no clock and no network.

`docs/architecture.md` says what lives in each room. `FLOORS` is the import rule: a room may import rooms on lower
floors, and its own modules, and nothing else of the package.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_python

PACKAGE = Path(__file__).resolve().parent.parent / "imdsproxy"
FLOORS = (
    {"web_page"},
    {"protocol", "clock", "errors", "files", "emulator", "__init__"},
    {"config", "policy", "records", "budget", "peers"},
    {"settings", "cache", "upstream", "access"},
    {"proxy"},
    {"ops"},
    {"server", "parts"},
    {"app"},
    {"cli"},
    {"testing", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ONLY_FOR = {"settings": {"app", "cli"}, "emulator": {"cli", "testing"}, "web_page": {"ops", "emulator"}}
"""Rooms that only some of those above may import."""

PURE = (
    *("protocol", "policy", "records", "config", "errors"),
    *("budget/bucket", "budget/bucket_state", "budget/fair_queue", "budget/shared_record", "budget/shares"),
    "budget/turns",
    *("access/decision", "access/document", "access/file", "access/guard", "access/paths", "access/profile"),
    *("access/query", "access/rules", "access/subject"),
    *("peers/pods", "peers/sock_diag", "peers/windows_tcp_tables"),
    *(
        "cache/access_token",
        "cache/derive",
        "cache/freshness",
        "cache/handover",
        "cache/refresh_spread",
        "cache/rendered_hit",
    ),
    *("upstream/headers", "upstream/health", "upstream/retry"),
    *(
        "ops/attribution",
        "ops/budget_troubles",
        "ops/client_tallies",
        "ops/counts",
        "ops/episodes",
        "ops/history",
        "ops/imds_troubles",
    ),
    *(
        "ops/imds_words",
        "ops/log_limit",
        "ops/media_types",
        "ops/metric_labels",
        "ops/otlp_variables",
        "ops/pending_events",
        "ops/spans",
    ),
    *("ops/status", "ops/tallies", "ops/token_names", "ops/token_troubles", "ops/troubles"),
    *("server/accepting", "server/head_rules", "server/connection_refusals", "server/purge"),
    *("emulator/event_kinds", "emulator/schedule", "emulator/timeline"),
    *("cli/nftables", "cli/running/event_lines", "cli/running/status_text", "cli/proc_net_tcp", "cli/tour_text"),
    *("cli/node_address", "cli/redirect_limits", "cli/rtnetlink"),
    "emulator/recorded",
    *("cli/check/answers", "cli/check/documents", "cli/check/facts", "cli/check/finding", "cli/check/report"),
    *("cli/check/ruleset", "cli/check/steps"),
)
"""Rooms and modules whose every decision follows from arguments. `make test` asks all their branches to be taken."""
IMPURE = {
    *("asyncio", "httpx", "starlette", "uvicorn", "logging", "time", "pydantic", "prometheus_client"),
    *("httptools", "uvloop", "cachetools", "anyio"),
    *("datetime", "random", "secrets", "socket", "ssl", "os", "sys", "pathlib", "threading", "subprocess", "importlib"),
}
FILES = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.py"))}
PURE_FILES = [name for name in FILES if name.startswith(tuple(f"{room}/" for room in PURE)) or name in PURE]


@cache
def imported(name: str) -> frozenset[str]:
    """Return the dotted names that a module imports anywhere in it, for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively, which this test does not follow"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def modules(name: str) -> set[str]:
    """Return the modules of the package that a module imports, as `FILES` names them."""
    found = set()
    for full in imported(name):
        if full.split(".")[0] == "imdsproxy":
            parts = full.split(".")[1:]
            candidates = ("/".join(parts), "/".join(parts[:-1]))
            found.add(
                next((one for one in candidates if one in FILES), "/".join((*parts[:-1], "__init__")).lstrip("/"))
            )
    return found


def room(name: str) -> str:
    return name.split("/", maxsplit=1)[0]


@pytest.mark.parametrize("name", FILES)
def test_room_imports_lower_floors_only(name: str) -> None:
    here = room(name)
    for other in set(map(room, modules(name))) - {here}:
        assert FLOOR[other] < FLOOR[here], f"{name} imports {other}, which is not on a lower floor"
        assert here in ONLY_FOR.get(other, FLOOR), f"{name} imports {other}"


def test_imports_form_no_cycle() -> None:
    TopologicalSorter({name: modules(name) - {name} for name in FILES}).prepare()


@pytest.mark.parametrize("name", PURE_FILES)
def test_pure_module_imports_no_clock_network_or_framework(name: str) -> None:
    assert not {full.split(".")[0] for full in imported(name)} & IMPURE
    assert {other for other in modules(name) if other != "__init__"} <= {*PURE_FILES}


@pytest.mark.parametrize("name", PURE_FILES)
def test_pure_module_neither_waits_nor_reads_behind_the_tests_back(name: str) -> None:
    nodes = list(ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))))
    assert not [node for node in nodes if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"__import__", "exec", "eval", "open", "print", "input"}


def test_proxy_decides_without_waiting() -> None:
    """What waits stands in `proxy/waiting`, so that no decision has an `await` between its check and its change."""
    nodes = list(ast.walk(ast.parse(FILES["proxy/proxy"].read_text(encoding="utf-8"))))
    assert not [node for node in nodes if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


def test_architecture_page_names_every_module() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    tables = dict(re.findall(r"\| `(\w+)/` \| keeps \|\n(.*?)\n\n", text, re.DOTALL))
    in_rooms = [name for name in FILES if "/" in name and not name.rpartition("/")[2].startswith("__")]
    missing = [name for name in in_rooms if f"`{name.partition('/')[2]}`" not in tables[room(name)]]
    assert not missing, f"docs/architecture.md does not name {missing}"


def test_httpx_is_imported_by_upstream_client_only() -> None:
    users = [name for name in FILES if {full.split(".")[0] for full in imported(name)} & {"httpx", "httpcore", "h11"}]
    assert users == ["upstream/client"]


@pytest.mark.parametrize(
    ("extra", "importer"),
    [
        ({"opentelemetry", "requests", "google"}, "ops/otlp"),
        ({"lightkube", "httpx2", "httpcore2", "msgspec"}, "peers/kubernetes"),
    ],
)
def test_extra_is_imported_by_one_module_that_no_module_imports_at_its_head(extra: set[str], importer: str) -> None:
    assert [name for name in FILES if {full.split(".")[0] for full in imported(name)} & extra] == [importer]
    assert [name for name in FILES if importer in modules(name)] == ["parts/extras"]
    for name, path in FILES.items():
        head = ast.parse(path.read_text(encoding="utf-8")).body
        at_import = {node.module for node in head if isinstance(node, ast.ImportFrom)}
        assert f"imdsproxy.{importer.replace('/', '.')}" not in at_import, name


def test_line_of_a_log_is_awaited_not_asserted() -> None:
    """A thread writes the log, so a line that must come is there some time later: `kit.wait_for_log` waits for it."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(Path(__file__).parent.rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and any(asserts_a_line(part) for part in ast.walk(node.test))
    ]
    assert found == []


def asserts_a_line(node: ast.AST) -> bool:
    """Return whether this is `words in x.log` or `x.log.count(words)`, or the same of a part of the log."""
    if isinstance(node, ast.Compare):
        return any(isinstance(each, ast.In) for each in node.ops) and any(map(is_log, node.comparators))
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "count"
        and is_log(node.func.value)
    )


def is_log(node: ast.AST) -> bool:
    """Return whether this is a program's log, or a part of it."""
    return isinstance(node, ast.Attribute | ast.Subscript) and any(
        isinstance(each, ast.Attribute) and each.attr == "log" for each in ast.walk(node)
    )
