"""Nothing imports upward, and the core knows neither time nor network.

    messages ← core ← shell ← proxy ← (asgi, metrics, readiness, repeats, wiring) ← app ← connection ← lane ← server
    ← demo ← cli

The settings and the emulator stand beside: neither knows the proxy. A module without a place in `RANKS` or
`SETTINGS` fails here, so that whoever adds one decides where it belongs.
"""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "imdsproxy"

RANKS = {
    "imdsproxy": 0,
    "messages": 1,
    "target": 2,
    "normaliser": 2,
    "policy": 2,
    "headers": 2,
    "freshness": 2,
    "tokens": 2,
    "retry": 2,
    "outage": 2,
    "served": 2,
    "hits": 2,
    "budget": 2,
    "ruleset": 2,
    "derive": 2,
    "turns": 2,
    "rejections": 2,
    "budget_record": 2,
    "clock": 3,
    "store": 3,
    "admission": 3,
    "flights": 3,
    "upstream": 3,
    "errand": 3,
    "places": 3,
    "budget_file": 3,
    "shared_budget": 3,
    "listeners": 3,
    "fetch": 3,
    "parts": 3,
    "proxy": 4,
    "asgi": 5,
    "metrics": 5,
    "repeats": 5,
    "readiness": 5,
    "wiring": 5,
    "pages": 6,
    "app": 6,
    "connection": 7,
    "lane": 7,
    "logs": 3,
    "server": 8,
    "demo": 9,
    "redirect": 9,
    "cli": 10,
    "__main__": 11,
}
SETTINGS = {
    *("settings", "settings_fields", "settings_values", "settings_places", "settings_reader", "settings_report"),
}
READS_SETTINGS = {"cli", "demo", "app", "server", "listeners", "wiring", "redirect"}
STARTS_THE_EMULATOR = {"cli", "demo"}

CORE = {name for name, rank in RANKS.items() if rank in (1, 2)}
# What would let a decision depend on more than its arguments.
IMPURE = {
    *("asyncio", "httpx", "starlette", "uvicorn", "logging", "time", "pydantic", "prometheus_client"),
    *("pydantic_settings", "httptools", "uvloop", "cachetools", "anyio"),
    *("datetime", "random", "secrets", "socket", "ssl", "os", "sys", "pathlib", "threading", "subprocess", "importlib"),
}


def name_of(path: Path) -> str:
    """Give a module's name within the package: `app`, `emulator.faults`, and `imdsproxy` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) or "imdsproxy"


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
EMULATOR = {name for name in FILES if name.split(".")[0] == "emulator"}
HOUSE = set(FILES) - EMULATOR


@cache
def imported(name: str) -> frozenset[str]:
    """Give the full names of all that a module imports, wherever in it, for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively, which this test does not follow"
            source = node.module or ""
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix("imdsproxy.")
                found.add(f"imdsproxy.{inner}" if source.split(".")[0] == "imdsproxy" and inner in FILES else source)
    return frozenset(found)


@cache
def of_the_house(name: str) -> frozenset[str]:
    """Give the names, within the package, of the package's modules that a module imports."""
    ours = {full for full in imported(name) if full.split(".")[0] == "imdsproxy"}
    return frozenset(full.removeprefix("imdsproxy.") for full in ours)


def foreign(name: str) -> set[str]:
    return {full.split(".")[0] for full in imported(name)}


def test_every_module_has_a_place_and_every_place_a_module() -> None:
    assert RANKS.keys().isdisjoint(SETTINGS)
    assert RANKS.keys() | SETTINGS == HOUSE


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_is_imported_is_a_module_that_there_is(name: str) -> None:
    assert of_the_house(name) <= FILES.keys()


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_knows_neither_time_nor_network_nor_framework(name: str) -> None:
    assert not foreign(name) & IMPURE
    assert of_the_house(name) <= CORE | {"imdsproxy"}


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_imports_nothing_behind_this_tests_back(name: str) -> None:
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"__import__", "exec", "eval", "open", "print", "input"}


@pytest.mark.parametrize("name", sorted(CORE))
def test_nothing_in_the_core_waits(name: str) -> None:
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


def test_messages_know_nothing_of_the_house() -> None:
    assert of_the_house("messages") == set()


def test_httpx_is_known_to_upstream_alone() -> None:
    assert [name for name in FILES if foreign(name) & {"httpx", "httpcore", "h11"}] == ["upstream"]


@pytest.mark.parametrize("name", sorted(RANKS))
def test_nothing_imports_upward(name: str) -> None:
    upward = {other for other in of_the_house(name) if other in RANKS and RANKS[other] > RANKS[name]}
    assert upward == set()


def test_no_import_leads_back_to_where_it_came_from() -> None:
    TopologicalSorter({name: of_the_house(name) - {name} for name in FILES}).prepare()


@pytest.mark.parametrize("name", sorted(EMULATOR))
def test_the_emulator_knows_nothing_of_the_proxy(name: str) -> None:
    assert of_the_house(name) <= EMULATOR


def test_the_emulator_is_known_to_the_commands_that_start_it_alone() -> None:
    assert {name for name in HOUSE if of_the_house(name) & EMULATOR} <= STARTS_THE_EMULATOR


def test_the_settings_are_known_where_they_are_read_and_mapped_alone() -> None:
    assert {name for name in HOUSE - SETTINGS if of_the_house(name) & SETTINGS} <= READS_SETTINGS


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_the_settings_know_nothing_of_the_proxy(name: str) -> None:
    assert of_the_house(name) <= SETTINGS | {"imdsproxy"}
