"""Managed identities and their access tokens, which IMDS itself caches until they nearly expire.

Wordings and the order of keys: captured responses, and Microsoft's managed-identity pages.
"""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imdsproxy.emulator.az_tokens import AzTokens
from imdsproxy.emulator.keys import Keys
from imdsproxy.emulator.messages import base64url, compact
from imdsproxy.emulator.vm.model import Identity
from imdsproxy.emulator.vm.presets import SYSTEM_ASSIGNED, TENANT, USER_ASSIGNED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ONE_SELECTOR", "SEVERAL", "SYSTEM_ASSIGNED", "USER_ASSIGNED", "Identity", "ManagedIdentity"]

NOT_FOUND = "Identity not found"
SEVERAL = (
    "Multiple user assigned identities exist, "
    "please specify the clientId / resourceId of the identity in the token request"
)
ONE_SELECTOR = "Specify only one of client_id, object_id, msi_res_id and mi_res_id"
_RENEW_BEFORE = 300.0
_BACKDATED = 300
_MOST_TOKENS = 10_000


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    expires_on: int
    not_before: int


class ManagedIdentity:
    """The identities of one machine; `token_life` is in seconds, times are seconds since 1970.

    `machine_id` is the resource id of the machine, to which its system-assigned identity belongs. Tokens are signed by
    `keys`; if `cryptography` is not installed, their header says that they are not signed. Where there is a `lender`,
    tokens are its own, whatever the identity.
    """

    def __init__(  # noqa: PLR0913 - one keyword for each property that can be set
        self,
        identities: Sequence[Identity] = (SYSTEM_ASSIGNED, *USER_ASSIGNED),
        token_life: float = 86_400,
        tenant_id: str = TENANT,
        *,
        machine_id: str = "",
        keys: Keys | None = None,
        lender: AzTokens | None = None,
    ) -> None:
        self.identities = tuple(identities)
        self.token_life = token_life
        self.tenant_id = tenant_id
        self.machine_id = machine_id
        self.lender = lender
        self._keys = Keys() if keys is None else keys
        self._tokens: dict[tuple[Identity, str], _Token] = {}
        self._serial = itertools.count(1)
        self._lock = threading.Lock()

    def choose(self, parameters: Mapping[str, str]) -> Identity | str:
        """Return the identity that a token request selects, or the error message of IMDS if there is none."""
        named = [name for name in ("client_id", "object_id", "msi_res_id", "mi_res_id") if name in parameters]
        if len(named) > 1:  # not verified: IMDS may prefer one of them
            return ONE_SELECTOR
        if named:
            field = "resource_id" if named[0].endswith("res_id") else named[0]
            wanted = parameters[named[0]].lower()
            found = (one for one in self.identities if wanted and getattr(one, field).lower() == wanted)
            return next(found, NOT_FOUND)
        if len(self.identities) == 1:
            return self.identities[0]
        system = next((one for one in self.identities if not one.resource_id), None)
        return system or (SEVERAL if self.identities else NOT_FOUND)

    def token(self, identity: Identity, resource: str, now: float, *, bypass_cache: bool) -> dict[str, str]:
        """Return a token document: the last token again, unless it expires soon or the cache is bypassed.

        Not verified: how long before its expiry IMDS replaces a token. Here it is 300 s, or a tenth of a shorter life.

        Raises:
            LendError: There is a lender, and it has no token.
        """
        key = (identity, resource)
        token = self._tokens.get(key)
        margin = min(_RENEW_BEFORE, self.token_life / 10)
        if bypass_cache or token is None or token.expires_on - now <= margin:
            token = self._mint(identity, resource, now) if self.lender is None else _lent(self.lender, resource, now)
            with self._lock:  # a lender is asked in threads
                self._tokens.pop(key, None)
                self._tokens[key] = token
                if len(self._tokens) > _MOST_TOKENS:
                    del self._tokens[next(iter(self._tokens))]
        return {
            "access_token": token.text,
            "client_id": identity.client_id,
            "expires_in": str(max(0, int(token.expires_on - now))),
            "expires_on": str(token.expires_on),
            "ext_expires_in": str(max(0, int(self.token_life) - 1)),
            "not_before": str(token.not_before),
            "resource": resource,
            "token_type": "Bearer",
        }

    def _not_before(self, expires_on: int) -> int:
        return expires_on - int(self.token_life) - _BACKDATED

    @property
    def tenants(self) -> set[str]:
        """The tenants of the machine and of its identities."""
        return {self.tenant_id, *(identity.tenant_id for identity in self.identities if identity.tenant_id)}

    def _mint(self, identity: Identity, resource: str, now: float) -> _Token:
        expires_on = math.ceil(now + self.token_life)
        not_before = self._not_before(expires_on)
        tenant = identity.tenant_id or self.tenant_id
        issuer = self._keys.issuer(tenant)
        claims = {
            "aud": resource,
            "iss": issuer,
            "iat": not_before,
            "nbf": not_before,
            "exp": expires_on,
            # `appid` and `appidacr` are of tokens of version 1.0, `azp` and `azpacr` of 2.0. A verifier finds both.
            "appid": identity.client_id,
            "appidacr": "2",
            "azp": identity.client_id,
            "azpacr": "2",
            "idp": issuer,
            "idtyp": "app",
            "oid": identity.object_id,
            "sub": identity.object_id,
            "tid": tenant,
            "uti": str(next(self._serial)),
            "ver": "1.0",
            "xms_mirid": identity.resource_id or self.machine_id,
            "note": "Made by the imdsproxy emulator; no service accepts it.",
        }
        if self._keys.available:
            return _Token(self._keys.sign_token(claims), expires_on, not_before)
        parts = (compact({"typ": "JWT", "alg": "none"}), compact(claims), b"unsigned, from an emulator")
        return _Token(".".join(base64url(part) for part in parts), expires_on, not_before)


def _lent(lender: AzTokens, resource: str, now: float) -> _Token:
    text, expires_on = lender.lend(resource)
    return _Token(text, expires_on, int(now) - _BACKDATED)
