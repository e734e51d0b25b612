"""The environment variables by which client libraries find the emulated IMDS."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ELSEWHERE = ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET")
"""Where one of these is set, as on App Service and Azure Arc, azure-identity and MSAL do not ask IMDS."""
_DIRECT = ("127.0.0.1", "localhost", "::1")


def variables(url: str) -> dict[str, str | None]:
    """Return the variables with which client libraries ask the IMDS at this URL; None is unset."""
    found: dict[str, str | None] = dict.fromkeys(_ELSEWHERE)
    found["AZURE_POD_IDENTITY_AUTHORITY_HOST"] = url
    # A developer's HTTP proxy cannot reach this machine's loopback.
    for name in ("NO_PROXY", "no_proxy"):
        given = [part for part in os.environ.get(name, "").split(",") if part and part not in _DIRECT]
        found[name] = ",".join((*given, *_DIRECT))
    return found


@contextlib.contextmanager
def set_variables(url: str) -> Iterator[None]:
    """Set the variables during the block."""
    wanted = variables(url)
    before = {name: os.environ.get(name) for name in wanted}
    _put(wanted)
    try:
        yield
    finally:
        _put(before)


def _put(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
