from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from imdsproxy.emulator.attested import COMMON_NAME, SAMPLE_SIGNATURE, Signer, payload

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_696_249_991.7  # 2 October 2023, 12:33:11 UTC
COMPUTE: dict[str, Any] = {
    "licenseType": "",
    "plan": {"name": "", "product": "", "publisher": ""},
    "sku": "18.04-LTS",
    "subscriptionId": "s",
    "vmId": "v",
}


def test_newest_document_has_its_fields_in_order() -> None:
    assert json.dumps(payload(COMPUTE, "1234567890", "2021-02-01", NOW), separators=(",", ":")) == (
        '{"licenseType":"","nonce":"1234567890","plan":{"name":"","product":"","publisher":""},'
        '"sku":"18.04-LTS","subscriptionId":"s",'
        '"timeStamp":{"createdOn":"10/02/23 12:33:11 -0000","expiresOn":"10/02/23 18:33:11 -0000"},"vmId":"v"}'
    )


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("2018-10-01", ["nonce", "plan", "timeStamp", "vmId"]),
        ("2019-04-30", ["nonce", "plan", "subscriptionId", "timeStamp", "vmId"]),
        ("2019-11-01", ["nonce", "plan", "sku", "subscriptionId", "timeStamp", "vmId"]),
        ("2020-09-01", ["licenseType", "nonce", "plan", "sku", "subscriptionId", "timeStamp", "vmId"]),
    ],
)
def test_fields_depend_on_the_version(version: str, fields: list[str]) -> None:
    assert list(payload(COMPUTE, "n", version, NOW)) == fields


def test_time_replaces_a_missing_nonce() -> None:
    assert payload(COMPUTE, None, "2018-10-01", NOW)["nonce"] == "20231002-123311"
    assert payload(COMPUTE, "", "2018-10-01", NOW)["nonce"] == ""


def test_signature_includes_the_certificate() -> None:
    pkcs7 = pytest.importorskip("cryptography.hazmat.primitives.serialization.pkcs7")
    signer = Signer()
    signatures = [base64.b64decode(signer.sign({"nonce": nonce})) for nonce in ("1", "2")]
    certificates = [pkcs7.load_der_pkcs7_certificates(signature)[0] for signature in signatures]
    assert certificates[0].subject.rfc4514_string() == f"CN={COMMON_NAME}"
    assert certificates[0] == certificates[1], "one certificate for the whole run"
    assert b'{"nonce":"1"}' in signatures[0]


def test_signature_matches_the_content() -> None:
    pytest.importorskip("cryptography")
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - only where it is installed
    from cryptography.hazmat.primitives.asymmetric import padding, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import pkcs7  # noqa: PLC0415

    signed = base64.b64decode(Signer().sign({"nonce": "1"}))
    key = pkcs7.load_der_pkcs7_certificates(signed)[0].public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    # The signature is the last octet string, as long as the modulus.
    signature = signed[-256:]
    key.verify(signature, b'{"nonce":"1"}', padding.PKCS1v15(), SHA256())
    with pytest.raises(InvalidSignature):
        key.verify(signature, b'{"nonce":"2"}', padding.PKCS1v15(), SHA256())


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_verifies_the_signature(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    signed = tmp_path / "signed.der"
    signed.write_bytes(base64.b64decode(Signer().sign({"nonce": "1234567890"})))
    command = ["openssl", "cms", "-verify", "-noverify", "-inform", "DER", "-in", str(signed), "-binary"]
    result = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(result.stdout) == {"nonce": "1234567890"}


def test_without_cryptography_the_documented_sample_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    signer = Signer()
    assert not signer.available
    assert signer.sign({"nonce": "1"}) == SAMPLE_SIGNATURE
    assert b'{"nonce":"1234566766"' in base64.b64decode(SAMPLE_SIGNATURE)
