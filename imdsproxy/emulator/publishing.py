"""What a verifier asks for: the keys of access tokens (OpenID Connect Discovery), and the certificates.

None of it is part of IMDS, so nothing of it is below `/metadata`, and a request for it is no arrival.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from imdsproxy.emulator.messages import Answer, Request, failure, json_answer

if TYPE_CHECKING:
    from imdsproxy.emulator.emulator import Emulator

PEM_TYPE = "application/x-pem-file"
CERTIFICATE_TYPE = "application/pkix-cert"
CERTIFICATES = ("/-/ca.pem", "/-/ca/root.cer", "/-/ca/intermediate.cer", "/-/ca/intermediate.pem")
_UNSIGNED = "The emulator signs nothing, because the cryptography package is not installed"
_LENT = "The tokens are your own, from the Azure CLI; Microsoft Entra ID publishes the keys that verify them"
_SHARED_TENANTS = {"common", "organizations"}


def tenant_document(path: str) -> tuple[str, str] | None:
    """Return the tenant and the document, `configuration` or `keys`, of a raw path; None for any other path."""
    match path.split("/")[1:]:
        case [tenant, *version, ".well-known", "openid-configuration"] if version in ([], ["v2.0"]):
            document = "configuration"
        case [tenant, "discovery", *version, "keys"] if version in ([], ["v2.0"]):
            document = "keys"
        case _:
            return None
    return (tenant, document) if tenant not in {"", "metadata", "-"} else None


def tenant_answer(emulator: Emulator, request: Request, tenant: str, document: str) -> Answer:
    """Return the OpenID configuration or the keys of a tenant."""
    keys, identity = emulator.keys, emulator.machine.identity
    if request.method != "GET":
        return replace(failure(405), headers=(("allow", "GET"),))
    if tenant.lower() not in {*_SHARED_TENANTS, *(known.lower() for known in identity.tenants)}:
        return failure(404, message=f"No identity of this machine has the tenant {tenant!r}")
    if identity.lender is not None:
        return failure(404, message=_LENT)
    if not keys.available:
        return failure(404, message=_UNSIGNED)
    if document == "keys":
        from imdsproxy.emulator.authority import token_key  # noqa: PLC0415 - optional and slow

        return json_answer({"keys": [{**token_key(keys.authority()), "issuer": keys.issuer(tenant)}]})
    if tenant.lower() in _SHARED_TENANTS:
        tenant = identity.tenant_id
    return json_answer(
        {
            "issuer": keys.issuer(tenant),
            "jwks_uri": f"{keys.url}/{tenant}/discovery/v2.0/keys",
            "response_types_supported": [],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
        },
    )


def certificate_answer(emulator: Emulator, path: str) -> Answer:
    """Return one of the `CERTIFICATES`."""
    if not emulator.keys.available:
        return failure(404, message=_UNSIGNED)
    from imdsproxy.emulator.authority import der, pem  # noqa: PLC0415 - optional and slow

    authority = emulator.keys.authority()
    certificate = authority.intermediate if "intermediate" in path else authority.root
    if path.endswith(".pem"):
        return Answer(200, pem(certificate), PEM_TYPE)
    return Answer(200, der(certificate), CERTIFICATE_TYPE)
