"""The targets at IMDS that clients ask for, in the benchmark and in the simulation."""

from __future__ import annotations

INSTANCE = "/metadata/instance?api-version=2021-02-01"
"""The whole instance document, about 2 kB."""
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
RESOURCES = ("vault", "storage", "database", "management", "servicebus")

_TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://{resource}.azure.net"


def token(resource: str = RESOURCES[0], identity: int | None = None) -> str:
    """Return the target of an access token.

    Args:
        resource: One of RESOURCES.
        identity: The number of a user-assigned identity; None is the VM's own.
    """
    named = "" if identity is None else f"&client_id={identity}"
    return _TOKEN.format(resource=resource) + named
