"""Read the kernel's table of IPv4 TCP sockets, /proc/net/tcp (proc(5))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

LISTENING = "0A"
_OPENING_OR_OPEN = ("01", "02")


@dataclass(frozen=True, slots=True)
class Row:
    """One socket."""

    local: tuple[str, int]
    """Address and port."""
    remote: tuple[str, int]
    state: str
    """The state as the kernel numbers it, such as `LISTENING`."""
    user: int
    inode: int

    @property
    def calls(self) -> bool:
        """Whether the connection is open, or is being opened from here."""
        return self.state in _OPENING_OR_OPEN

    def listens_at(self, host: str, port: int) -> bool:
        """Return whether the socket accepts connections to this address, by itself or with all others."""
        return self.state == LISTENING and self.local[1] == port and self.local[0] in {host, "0.0.0.0"}  # noqa: S104


def read_tcp_table(text: str, byteorder: Literal["little", "big"]) -> Iterator[Row]:
    """Yield the sockets of /proc/net/tcp.

    Args:
        text: The content of the file.
        byteorder: The machine's, in which the kernel writes addresses.
    """
    for line in text.splitlines()[1:]:
        columns = line.split()
        local, remote = (_address(columns[place], byteorder) for place in (1, 2))
        yield Row(local, remote, columns[3], int(columns[7]), int(columns[9]))


def _address(text: str, byteorder: Literal["little", "big"]) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return str(IPv4Address(bytes.fromhex(host)[:: -1 if byteorder == "little" else 1])), int(port, 16)
