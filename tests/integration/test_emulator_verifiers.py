"""Verifiers accept what the emulator signs: access tokens, and attested documents by the founding page's own sample."""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("cryptography")

import jwt
from azure.identity import ManagedIdentityCredential
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from imdsproxy.emulator.vm.presets import SYSTEM_ASSIGNED, TENANT, USER_ASSIGNED, linux, preset

pytestmark = pytest.mark.any_python

CONFIGURATION = f"/{TENANT}/.well-known/openid-configuration"
OTHER_TENANT = "e0000000-0000-4000-8000-00000000a7e2"
VAULT = "https://vault.azure.net"


@pytest.fixture(scope="module")
def signing() -> Iterator[EmulatorServer]:
    first, second = USER_ASSIGNED
    machine = replace(linux(), identities=(SYSTEM_ASSIGNED, first, replace(second, tenant_id=OTHER_TENANT)))
    with run_in_thread(Emulator(machine=machine, rate=0, identity_rate=0, identity_concurrency=0)) as server:
        yield server


def fetch(server: EmulatorServer, target: str) -> tuple[int, bytes]:
    """Return status and body; `target` is a path, or an address of this emulator."""
    path = urlsplit(target)._replace(scheme="", netloc="").geturl()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("GET", path, headers={"Metadata": "true"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def document(server: EmulatorServer, target: str) -> Any:
    status, body = fetch(server, target)
    assert status == 200, body
    return json.loads(body)


def verified(server: EmulatorServer, token: str, audience: str, tenant: str = TENANT) -> dict[str, Any]:
    """Verify a token as a service does: everything it needs comes from the OpenID configuration of the tenant."""
    configuration = document(server, f"/{tenant}/.well-known/openid-configuration")
    key = jwt.PyJWKClient(configuration["jwks_uri"]).get_signing_key_from_jwt(token)
    required = ["exp", "iat", "nbf", "iss", "aud", "oid", "tid"]
    claims: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=["RS256"],
        audience=audience,
        issuer=configuration["issuer"],
        options={"require": required},
    )
    return claims


class TestTokens:
    @pytest.mark.parametrize(
        ("selector", "identity", "tenant"),
        [
            ("", SYSTEM_ASSIGNED, TENANT),
            (f"&client_id={USER_ASSIGNED[0].client_id}", USER_ASSIGNED[0], TENANT),
            (f"&msi_res_id={USER_ASSIGNED[1].resource_id}", USER_ASSIGNED[1], OTHER_TENANT),
        ],
    )
    def test_pyjwt_verifies_the_token_of_each_identity(
        self, signing: EmulatorServer, selector: str, identity: Any, tenant: str
    ) -> None:
        path = f"/metadata/identity/oauth2/token?api-version=2018-02-01&resource={VAULT}{selector}"
        answer = document(signing, path)
        claims = verified(signing, answer["access_token"], VAULT, tenant)
        machine = signing.emulator.instance["compute"]["resourceId"]
        assert claims["iss"] == f"{signing.url}/{tenant}/"
        assert (claims["oid"], claims["sub"], claims["tid"]) == (identity.object_id, identity.object_id, tenant)
        assert claims["appid"] == claims["azp"] == identity.client_id
        assert claims["xms_mirid"] == (identity.resource_id or machine)
        assert str(claims["exp"]) == answer["expires_on"]
        assert str(claims["nbf"]) == str(claims["iat"]) == answer["not_before"]

    def test_azure_identity_gets_a_token_that_verifies(
        self, signing: EmulatorServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", signing.url)
        with ManagedIdentityCredential(client_id=USER_ASSIGNED[0].client_id) as credential:
            token = credential.get_token("https://management.azure.com/.default")
        claims = verified(signing, token.token, "https://management.azure.com")
        assert claims["oid"] == USER_ASSIGNED[0].object_id
        assert claims["exp"] == pytest.approx(token.expires_on, abs=2), "the client counts from when it asked"

    @pytest.mark.parametrize(
        ("audience", "tenant", "refusal"),
        [("other", TENANT, jwt.InvalidAudienceError), (VAULT, "other", jwt.InvalidIssuerError)],
    )
    def test_token_of_another_audience_or_issuer_is_refused(
        self, signing: EmulatorServer, audience: str, tenant: str, refusal: type[Exception]
    ) -> None:
        token = signing.emulator.machine.identity.token(SYSTEM_ASSIGNED, VAULT, time.time(), bypass_cache=True)
        key = jwt.PyJWK(document(signing, f"/{TENANT}/discovery/v2.0/keys")["keys"][0])
        issuer = f"{signing.url}/{tenant}/"
        with pytest.raises(refusal):
            jwt.decode(token["access_token"], key, algorithms=["RS256"], audience=audience, issuer=issuer)

    def test_changed_token_is_refused(self, signing: EmulatorServer) -> None:
        identity = signing.emulator.machine.identity
        head, claims, signature = identity.token(SYSTEM_ASSIGNED, VAULT, time.time(), bypass_cache=True)[
            "access_token"
        ].split(".")
        read = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))) | {"oid": "me"}
        forged = base64.urlsafe_b64encode(json.dumps(read).encode()).rstrip(b"=").decode()
        key = jwt.PyJWK(document(signing, f"/{TENANT}/discovery/keys")["keys"][0])
        with pytest.raises(jwt.InvalidSignatureError):
            jwt.decode(f"{head}.{forged}.{signature}", key, algorithms=["RS256"], options={"verify_aud": False})

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            *((f"/{tenant}/.well-known/openid-configuration", 200) for tenant in (TENANT, "common", "organizations")),
            (f"/{TENANT}/v2.0/.well-known/openid-configuration", 200),
            (f"/{TENANT}/discovery/v1.0/keys", 404),
            ("/e0000000-0000-4000-8000-000000000000/.well-known/openid-configuration", 404),
            ("/metadata/.well-known/openid-configuration", 404),
            ("/metadata/discovery/keys", 404),
            ("/.well-known/openid-configuration", 404),
        ],
    )
    def test_keys_are_published_beside_imds_and_not_below_it(
        self, signing: EmulatorServer, path: str, status: int
    ) -> None:
        before = len(signing.emulator.arrivals)
        found, body = fetch(signing, path)
        assert found == status
        arrived = [arrival.target.decode() for arrival in signing.emulator.arrivals[before:]]
        assert arrived == (
            [path] if status == 404 and not path.startswith("/e0000000-0000-4000-8000-000000000000") else []
        )
        if status == 200:
            configuration = json.loads(body)
            assert configuration["issuer"] == f"{signing.url}/{TENANT}/"
            assert document(signing, configuration["jwks_uri"])["keys"][0]["alg"] == "RS256"

    def test_keys_can_only_be_read(self, signing: EmulatorServer) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", signing.port, timeout=5)
        connection.request("POST", CONFIGURATION)
        response = connection.getresponse()
        assert (response.status, response.headers["allow"]) == (405, "GET")
        connection.close()


def elements(der: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each element of DER (X.690), one after the other."""
    found, at = [], 0
    while at < len(der):
        tag, length, start = der[at], der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start], "big")
        found.append((tag, der[start : start + length]))
        at = start + length
    return found


def inside(der: bytes, *path: int) -> bytes:
    for index in path:
        der = elements(der)[index][1]
    return der


def content_of(signed: bytes) -> tuple[bytes, bytes]:
    """Return the content of a SignedData, and the signature of its signer (RFC 2315)."""
    data = inside(signed, 0, 1, 0)
    signer = inside(data, -1, 0)
    return inside(data, 2, 1, 0), next(part for tag, part in reversed(elements(signer)) if tag == 0x04)


def validate(server: EmulatorServer, version: str, nonce: str, domain: str) -> dict[str, Any]:
    """Validate an attested document, step by step as the founding page does in PowerShell."""
    # Get the signature, and decode it.
    answer = document(server, f"/metadata/attested/document?api-version={version}&nonce={nonce}")
    assert answer["encoding"] == "pkcs7"
    signature = base64.b64decode(answer["signature"])
    # Get the certificate chain. Like a machine of that page, this one downloads the intermediate certificate.
    (certificate,) = pkcs7.load_der_pkcs7_certificates(signature)
    (name,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert str(name.value).endswith(f".{domain}")
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    intermediate = x509.load_der_x509_certificate(fetch(server, access[0].access_location.value)[1])
    root = x509.load_pem_x509_certificate(fetch(server, "/-/ca.pem")[1])
    policy = PolicyBuilder().store(Store([root])).time(dt.datetime.now(dt.UTC))
    chain = policy.build_server_verifier(x509.DNSName(str(name.value))).verify(certificate, [intermediate])
    assert [each.subject for each in chain] == [certificate.subject, intermediate.subject, root.subject]
    # Get the content of the signed document, which the certificate's key has signed.
    content, value = content_of(signature)
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(value, content, padding.PKCS1v15(), SHA256())
    with pytest.raises(InvalidSignature):
        key.verify(value, content + b" ", padding.PKCS1v15(), SHA256())
    # Do additional validation: the nonce is that of the request, and the document is good now.
    found: dict[str, Any] = json.loads(content)
    assert found["nonce"] == nonce
    created, expires = (
        dt.datetime.strptime(found["timeStamp"][moment], "%m/%d/%y %H:%M:%S %z")
        for moment in ("createdOn", "expiresOn")
    )
    assert created <= dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1) <= expires
    return found


class TestAttestedDocuments:
    def test_sample_of_the_founding_page_validates(self, signing: EmulatorServer) -> None:
        found = validate(signing, "2020-09-01", "1234567890", "metadata.azure.com")
        assert found["vmId"] == signing.emulator.instance["compute"]["vmId"]

    @pytest.mark.parametrize(("cloud", "domain"), [("us-gov", "metadata.azure.us"), ("china", "metadata.azure.cn")])
    def test_sovereign_cloud_has_a_certificate_of_its_own(self, cloud: str, domain: str) -> None:
        with run_in_thread(Emulator(machine=preset(cloud))) as server:
            validate(server, "2020-09-01", "0987654321", domain)

    def test_authority_is_trusted_for_no_other_name(self, signing: EmulatorServer) -> None:
        from imdsproxy.emulator.authority import issue  # noqa: PLC0415 - only where cryptography is installed

        authority = signing.emulator.keys.authority()
        stranger = issue(authority, "bank.example", "http://127.0.0.1/").certificate
        verifier = PolicyBuilder().store(Store([authority.root])).build_server_verifier(x509.DNSName("bank.example"))
        with pytest.raises(VerificationError):
            verifier.verify(stranger, [authority.intermediate])

    @pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
    def test_openssl_verifies_document_and_chain(self, signing: EmulatorServer, tmp_path: Path) -> None:
        answer = document(signing, "/metadata/attested/document?api-version=2021-02-01&nonce=1234567890")
        signed, chain = tmp_path / "signed", tmp_path / "chain"
        signed.write_bytes(base64.b64decode(answer["signature"]))
        chain.write_bytes(fetch(signing, "/-/ca/intermediate.pem")[1] + fetch(signing, "/-/ca.pem")[1])
        command = ["openssl", "cms", "-verify", "-inform", "DER", "-in", str(signed), "-binary"]
        command += ["-CAfile", str(chain), "-purpose", "any"]
        result = subprocess.run(command, capture_output=True, check=False, timeout=30)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["nonce"] == "1234567890"

    def test_certificates_come_in_both_forms(self, signing: EmulatorServer) -> None:
        for name in ("root", "intermediate"):
            in_der = x509.load_der_x509_certificate(fetch(signing, f"/-/ca/{name}.cer")[1])
            path = "/-/ca.pem" if name == "root" else f"/-/ca/{name}.pem"
            assert in_der == x509.load_pem_x509_certificate(fetch(signing, path)[1])
