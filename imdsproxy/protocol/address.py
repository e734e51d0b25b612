"""Where a proxy sends its requests."""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.host import IPAddress, plain
from imdsproxy.protocol.messages import IMDS_HOST

_LOOPBACK = {4: plain("127.0.0.1"), 6: plain("::1")}
"""The loopback address of each version of IP."""


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
        reached, listener = _reached(self.host), _read(host)
        if isinstance(listener, str) or not listener.is_unspecified:
            return not reached.isdisjoint(_reached(host))
        return any(
            not isinstance(each, str) and each.is_loopback and each.version <= listener.version for each in reached
        )


def _reached(host: str) -> frozenset[IPAddress | str]:
    """Return the addresses that a connection to a host may reach; the name alone where it is not localhost."""
    if host == "localhost":
        return frozenset(_LOOPBACK.values())
    address = _read(host)
    if isinstance(address, str) or not address.is_unspecified:
        return frozenset({address})
    # A connection to 0.0.0.0 or to :: is one to the loopback of this machine.
    return frozenset({_LOOPBACK[address.version]})


def _read(host: str) -> IPAddress | str:
    try:
        return plain(host)
    except ValueError:
        return host


IMDS = Address(IMDS_HOST)
"""The address of IMDS on every VM."""
