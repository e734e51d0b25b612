"""Where a proxy sends its requests."""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.host import IPAddress, plain
from imdsproxy.protocol.messages import IMDS_HOST

_LOOPBACK = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where IMDS is: a host and a port, or the path of a Unix socket."""

    host: str
    port: int = 80
    unix: str | None = None

    def __str__(self) -> str:
        return f"unix:{self.unix}" if self.unix else f"http://{self.authority}"

    @property
    def authority(self) -> str:
        """The Host field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"

    def reaches(self, host: str, port: int) -> bool:
        """Return whether a TCP listener on this host and port gets what is sent here, as far as is known without DNS.

        A listener on the unspecified address is reached at every loopback address of its family; one on :: at those of
        IPv4 too, as ipv6(7) has it where IPV6_V6ONLY is off. Other addresses of the machine are not known here.
        """
        if self.unix is not None or self.port != port:
            return False
        reached = _reached(self.host)
        listener = _ip(host)
        if listener is not None and listener.is_unspecified:
            return any(
                (address := _ip(text)) is not None and address.is_loopback and address.version <= listener.version
                for text in reached
            )
        return not reached.isdisjoint(_reached(host))


def _reached(host: str) -> frozenset[str]:
    """Return the addresses that a connection to a host may reach; the name alone where it is not localhost."""
    if host == "localhost":
        return _LOOPBACK
    address = _ip(host)
    if address is None:
        return frozenset({host})
    if address.is_unspecified:
        # A connection to 0.0.0.0 or to :: is one to the loopback of this machine.
        return frozenset({"127.0.0.1" if address.version == 4 else "::1"})
    return frozenset({str(address)})


def _ip(text: str) -> IPAddress | None:
    try:
        return plain(text)
    except ValueError:
        return None


IMDS = Address(IMDS_HOST)
"""The address of IMDS on every VM."""
