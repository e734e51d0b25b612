"""Where a proxy sends its requests."""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.messages import IMDS_HOST


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


IMDS = Address(IMDS_HOST)
"""The address of IMDS on every VM."""
