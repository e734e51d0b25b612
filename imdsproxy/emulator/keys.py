"""What signs access tokens and attested documents, made or read at first use. Safe to use from any thread.

Signing needs the `cryptography` package, which is optional and slow to load.
"""

from __future__ import annotations

import importlib.util
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imdsproxy.emulator.authority import Authority, Credentials

UNKNOWN_URL = "http://emulator.invalid"
"""The address of an emulator that does not listen."""


@cache
def _temporary() -> Authority:
    """Return the authority of this process: one for all its emulators, because making it takes a while."""
    from imdsproxy.emulator.authority import make_authority  # noqa: PLC0415 - optional and slow, see above

    return make_authority()


class Keys:
    """The authority of one emulator, and where it is published.

    Attributes:
        available: Whether `cryptography` is installed.
        url: The address of the emulator for its clients, without a trailing slash.
    """

    def __init__(self, folder: Path | None = None, url: str = UNKNOWN_URL) -> None:
        self.available = importlib.util.find_spec("cryptography") is not None
        self.folder = folder
        self.url = url
        self._authority: Authority | None = None
        self._issued: dict[tuple[str, str], Credentials] = {}
        self._lock = threading.Lock()

    def authority(self) -> Authority:
        """Return the authority: that of the folder, or else that of this process.

        Raises:
            KeysError: The folder cannot be used.
        """
        with self._lock:
            return self._opened()

    def credentials(self, domain: str) -> Credentials:
        """Return the certificate that signs the attested documents of a cloud; one for the whole run."""
        from imdsproxy.emulator.authority import issue  # noqa: PLC0415 - optional and slow, see above

        with self._lock:
            key = (domain, self.url)
            if key not in self._issued:
                location = f"{self.url}/-/ca/intermediate.cer"
                self._issued[key] = issue(self._opened(), f"emulator.{domain}", location)
            return self._issued[key]

    def sign_token(self, claims: dict[str, Any]) -> str:
        """Return a signed access token."""
        from imdsproxy.emulator.authority import sign_token  # noqa: PLC0415 - optional and slow, see above

        return sign_token(self.authority(), claims)

    def issuer(self, tenant: str) -> str:
        """Return what the tokens of a tenant name as their issuer."""
        return f"{self.url}/{tenant}/"

    def _opened(self) -> Authority:
        if self._authority is None:
            if self.folder is None:
                self._authority = _temporary()
            else:
                from imdsproxy.emulator.authority_file import (  # noqa: PLC0415 - optional and slow, see above
                    open_authority,
                )

                self._authority = open_authority(self.folder)
        return self._authority
