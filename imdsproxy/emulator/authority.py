"""The certificates and the keys of the emulator: a root, an intermediate, and the key that signs access tokens.

The names follow the validation sample of Microsoft's IMDS page: the signing certificate is for a subdomain of the
cloud's `metadata.azure.com`, an intermediate issued it, and its address (Authority Information Access) leads to the
intermediate. Three rules keep a root that a developer trusts harmless:

1. Its own key is dropped once the intermediate is signed, and is written nowhere.
2. Both are good for names of attested documents only (RFC 5280, 4.2.1.10).
3. The intermediate can issue no further authority (path length 0).

Only this module and `authority_file` import `cryptography` at their head. Import them where they are needed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from imdsproxy.emulator.messages import base64url, compact
from imdsproxy.emulator.vm.model import CLOUDS

_LIFE = dt.timedelta(days=3650)
_LEAF_LIFE = dt.timedelta(days=365)
_BACKDATED = dt.timedelta(days=1)
_RSA_BITS = 2048


@dataclass(frozen=True, slots=True)
class Authority:
    """Everything that signs. The keys of the two authorities are P-256, which is fast to make."""

    root: x509.Certificate
    intermediate: x509.Certificate
    intermediate_key: ec.EllipticCurvePrivateKey
    token_key: rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate that signs attested documents. Its key is RSA, as that of the documented sample."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate


def make_authority() -> Authority:
    """Return a new authority, good from yesterday on for ten years."""
    now = dt.datetime.now(dt.UTC)
    root_key, intermediate_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, intermediate_name = (_name(f"imdsproxy emulator {kind} CA") for kind in ("root", "intermediate"))
    limits = x509.NameConstraints([x509.DNSName(cloud.attested_domain) for cloud in CLOUDS.values()], None)

    def authority(subject: x509.Name, key: ec.EllipticCurvePublicKey, path_length: int) -> x509.Certificate:
        builder = _builder(subject, root_name, now, now + _LIFE).public_key(key)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return _identified(builder.add_extension(limits, critical=True), key, root_key.public_key()).sign(
            root_key, SHA256()
        )

    return Authority(
        authority(root_name, root_key.public_key(), 1),
        authority(intermediate_name, intermediate_key.public_key(), 0),
        intermediate_key,
        rsa.generate_private_key(65_537, _RSA_BITS),
    )


def issue(authority: Authority, name: str, intermediate_url: str) -> Credentials:
    """Return a new certificate for a name of attested documents.

    Args:
        authority: What issues it.
        name: Its common name, such as `emulator.metadata.azure.com`.
        intermediate_url: Where a verifier finds the certificate of the intermediate.
    """
    key = rsa.generate_private_key(65_537, _RSA_BITS)
    now = dt.datetime.now(dt.UTC)
    end = min(now + _LEAF_LIFE, authority.intermediate.not_valid_after_utc)
    location = x509.UniformResourceIdentifier(intermediate_url)
    access = x509.AuthorityInformationAccess(
        [x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, location)]
    )
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = _builder(_name(name), authority.intermediate.subject, now, end).public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(purposes, critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    builder = builder.add_extension(access, critical=False)
    issuer = authority.intermediate_key
    certificate = _identified(builder, key.public_key(), issuer.public_key()).sign(issuer, SHA256())
    return Credentials(key, certificate)


def sign_token(authority: Authority, claims: dict[str, Any]) -> str:
    """Return a JSON Web Token with these claims, signed with RS256 (RFC 7515, RFC 7518)."""
    key_id = token_key(authority)["kid"]
    header = {"typ": "JWT", "alg": "RS256", "x5t": key_id, "kid": key_id}
    signed = f"{_segment(header)}.{_segment(claims)}"
    signature = authority.token_key.sign(signed.encode(), padding.PKCS1v15(), SHA256())
    return f"{signed}.{base64url(signature)}"


def token_key(authority: Authority) -> dict[str, str]:
    """Return the public key of access tokens as a JSON Web Key; its id is its thumbprint (RFC 7517, RFC 7638)."""
    numbers = authority.token_key.public_key().public_numbers()
    members = {"e": _integer(numbers.e), "kty": "RSA", "n": _integer(numbers.n)}
    thumbprint = hashlib.sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {
        "kty": "RSA",
        "use": "sig",
        "alg": "RS256",
        "kid": base64url(thumbprint),
        "n": members["n"],
        "e": members["e"],
    }


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate in PEM."""
    return certificate.public_bytes(Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """Return a certificate in DER."""
    return certificate.public_bytes(Encoding.DER)


def _segment(document: dict[str, Any]) -> str:
    return base64url(compact(document))


def _integer(number: int) -> str:
    return base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, now: dt.datetime, end: dt.datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(now - _BACKDATED).not_valid_after(end)


def _identified(
    builder: x509.CertificateBuilder,
    subject: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    issuer: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(subject), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
