"""The pytest plugin: fixtures `imds` and `imdsproxy`, and markers of the same names.

pytest imports this module in every project of an environment, so that it imports nothing but pytest.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager

    from imdsproxy.testing.imds import Imds
    from imdsproxy.testing.running import Proxy

_Started = TypeVar("_Started")

_IMDS = "imds(**options): start the fixture imds with these options, such as preset='windows' or rate=0"
_PROXY = "imdsproxy(**settings): start the fixture imdsproxy with these settings, named in lower case"


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line("markers", _IMDS)
    config.addinivalue_line("markers", _PROXY)


@pytest.fixture
def imds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Imds]:
    """Run an emulated IMDS for one test, where client libraries find it.

    Options come from the marker `imds`, and from the fixture's parameter, which is a dict of them.
    """
    from imdsproxy.testing.imds import emulator  # noqa: PLC0415 - not where no test uses it

    with ExitStack() as stack:
        running = _started(stack, request, "imds", lambda options: emulator(environment=False, **options))
        _set_variables(monkeypatch, running.url)
        yield running


@pytest.fixture
def imdsproxy(request: pytest.FixtureRequest, imds: Imds, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Run the proxy in front of `imds` for one test. Client libraries find the proxy, not IMDS.

    Settings come from the marker `imdsproxy`, and from the fixture's parameter, which is a dict of them.
    """
    from imdsproxy.testing.running import proxy  # noqa: PLC0415 - not where no test uses it

    with ExitStack() as stack:
        running = _started(stack, request, "imdsproxy", lambda options: proxy(imds, environment=False, **options))
        _set_variables(monkeypatch, running.url)
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what reached IMDS to the report of a failed test, and what the proxy logged."""
    report = yield
    if report.failed:
        if imds := _ours(item, "imds"):
            report.sections.append(("requests at the emulated IMDS", imds.account()))
        if imdsproxy := _ours(item, "imdsproxy"):
            report.sections.append(("log of imdsproxy", imdsproxy.log))
    return report


def _started(
    stack: ExitStack,
    request: pytest.FixtureRequest,
    name: str,
    start: Callable[[dict[str, Any]], AbstractContextManager[_Started]],
) -> _Started:
    """Enter the context of a fixture, and fail with the reason alone if it cannot start."""
    reason = ""
    try:
        return stack.enter_context(start(_options(request, name)))
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error)
    pytest.fail(reason, pytrace=False)


def _ours(item: pytest.Item, name: str) -> Any:
    """Return a fixture of a test if this plugin made it, else None: a project may have one of the same name."""
    fixture = getattr(item, "funcargs", {}).get(name)
    return fixture if type(fixture).__module__.startswith("imdsproxy.testing.") else None


def _options(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    """Return the keywords of the markers, the nearest one first in force, and of the fixture's parameter."""
    found: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers(name))):
        if marker.args:
            raise ValueError(f"the marker {name} takes keywords only, such as {name}(…=…), not {marker.args!r}")
        found |= marker.kwargs
    parameter = getattr(request, "param", {})
    if not isinstance(parameter, dict):
        raise ValueError(f"a parameter of the fixture {name} is a dict of its options, not {parameter!r}")  # noqa: TRY004 - one kind of error for every mistake
    return found | parameter


def _set_variables(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from imdsproxy.testing.variables import variables  # noqa: PLC0415 - not where no test uses it

    for name, value in variables(url).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
