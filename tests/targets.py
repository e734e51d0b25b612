"""Targets that the tests request."""

from imdsproxy.protocol.messages import Target
from imdsproxy.protocol.target import read_target

INSTANCE = "/metadata/instance?api-version=2021-02-01"
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
VERSIONS = "/metadata/versions"


def target_of(text: str) -> Target:
    """Return a target that the proxy accepts."""
    read = read_target(text.encode("ascii"))
    assert isinstance(read, Target)
    return read
