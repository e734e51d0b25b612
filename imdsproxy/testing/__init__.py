"""Helpers for tests of programs that use IMDS: an emulated IMDS, the proxy in front of it, a clock that a test moves.

`emulator()` and `proxy()` are context managers. Where pytest is installed, it finds the fixtures `imds` and `imdsproxy`
by itself. `docs/testing-your-code.md` has recipes.

Each name is imported at its first use, because pytest imports this package in every project of an environment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imdsproxy.testing.clock import FakeClock
    from imdsproxy.testing.imds import Imds, emulator
    from imdsproxy.testing.options import Options
    from imdsproxy.testing.running import Proxy, ProxyStartError, proxy
else:
    _MODULES = {
        "FakeClock": "clock",
        "Imds": "imds",
        "Options": "options",
        "Proxy": "running",
        "ProxyStartError": "running",
        "emulator": "imds",
        "proxy": "running",
    }

    def __getattr__(name):  # noqa: ANN001, ANN202 - type checkers read the branch above
        """Import what is asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(_MODULES))}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = ["FakeClock", "Imds", "Options", "Proxy", "ProxyStartError", "emulator", "proxy"]
