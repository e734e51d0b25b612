"""Attested data: a description of the machine, signed as PKCS#7 by a certificate made for this run.

Fields, time formats and the lifetime of six hours: Microsoft's IMDS pages of 2020 and 2025.
"""

from __future__ import annotations

import base64
import datetime as dt
import importlib.util
import threading
from typing import TYPE_CHECKING, Any

from imdsproxy.emulator.messages import compact

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

COMMON_NAME = "emulator.metadata.azure.invalid"
LIFE = dt.timedelta(hours=6)
UNSIGNED_NOTICE = (
    "the emulator serves Microsoft's sample attested document: the cryptography package, which it needs to sign its "
    "own, is not installed (requirements/emulator.txt in the source locks it; `make demo` installs it)"
)
_INTRODUCED = {"licenseType": "2020-09-01", "sku": "2019-11-01", "subscriptionId": "2019-04-30"}

# The documented sample (Microsoft's IMDS page, December 2020): a real signature over an old document.
SAMPLE_SIGNATURE = (
    "MIIEEgYJKoZIhvcNAQcCoIIEAzCCA/8CAQExDzANBgkqhkiG9w0BAQsFADCBugYJKoZIhvcNAQcBoIGsBIGpeyJub25jZSI6IjEy"
    "MzQ1NjY3NjYiLCJwbGFuIjp7Im5hbWUiOiIiLCJwcm9kdWN0IjoiIiwicHVibGlzaGVyIjoiIn0sInRpbWVTdGFtcCI6eyJjcmVh"
    "dGVkT24iOiIxMS8yMC8xOCAyMjowNzozOSAtMDAwMCIsImV4cGlyZXNPbiI6IjExLzIwLzE4IDIyOjA4OjI0IC0wMDAwIn0sInZt"
    "SWQiOiIifaCCAj8wggI7MIIBpKADAgECAhBnxW5Kh8dslEBA0E2mIBJ0MA0GCSqGSIb3DQEBBAUAMCsxKTAnBgNVBAMTIHRlc3Rz"
    "dWJkb21haW4ubWV0YWRhdGEuYXp1cmUuY29tMB4XDTE4MTEyMDIxNTc1N1oXDTE4MTIyMDIxNTc1NlowKzEpMCcGA1UEAxMgdGVz"
    "dHN1YmRvbWFpbi5tZXRhZGF0YS5henVyZS5jb20wgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGBAML/tBo86ENWPzmXZ0kPkX5d"
    "Y5QZ150mA8lommszE71x2sCLonzv4/UWk4H+jMMWRRwIea2CuQ5RhdWAHvKq6if4okKNt66fxm+YTVz9z0CTfCLmLT+nsdfOAsG1"
    "xZppEapC0Cd9vD6NCKyE8aYI1pliaeOnFjG0WvMY04uWz2MdAgMBAAGjYDBeMFwGA1UdAQRVMFOAENnYkHLa04Ut4Mpt7TkJFfyh"
    "LTArMSkwJwYDVQQDEyB0ZXN0c3ViZG9tYWluLm1ldGFkYXRhLmF6dXJlLmNvbYIQZ8VuSofHbJRAQNBNpiASdDANBgkqhkiG9w0B"
    "AQQFAAOBgQCLSM6aX5Bs1KHCJp4VQtxZPzXF71rVKCocHy3N9PTJQ9Fpnd+bYw2vSpQHg/AiG82WuDFpPReJvr7Pa938mZqW9HUO"
    "GjQKK2FYDTg6fXD8pkPdyghlX5boGWAMMrf7bFkup+lsT+n2tRw2wbNknO1tQ0wICtqy2VqzWwLi45RBwTGB6DCB5QIBATA/MCsx"
    "KTAnBgNVBAMTIHRlc3RzdWJkb21haW4ubWV0YWRhdGEuYXp1cmUuY29tAhBnxW5Kh8dslEBA0E2mIBJ0MA0GCSqGSIb3DQEBCwUA"
    "MA0GCSqGSIb3DQEBAQUABIGAld1BM/yYIqqv8SDE4kjQo3Ul/IKAVR8ETKcve5BAdGSNkTUooUGVniTXeuvDj5NkmazOaKZp9fEt"
    "ByqqPOyw/nlXaZgOO44HDGiPUJ90xVYmfeK6p9RpJBu6kiKhnnYTelUk5u75phe5ZbMZfBhuPhXmYAdjc7Nmw97nx8NnprQ="
)


def payload(compute: dict[str, Any], nonce: str | None, version: str, now: float) -> dict[str, Any]:
    """Return the document to sign, with the fields of this api-version.

    Args:
        compute: The compute part of the instance document.
        nonce: The nonce of the request; None puts the time in its place (its format, `20201130-211924`, is that of
            the sample and not verified).
        version: The api-version.
        now: Seconds since 1970.
    """
    created = dt.datetime.fromtimestamp(int(now), dt.UTC)
    everything = {
        "licenseType": compute.get("licenseType", ""),
        "nonce": created.strftime("%Y%m%d-%H%M%S") if nonce is None else nonce,
        "plan": compute.get("plan", {"name": "", "product": "", "publisher": ""}),
        "sku": compute.get("sku", ""),
        "subscriptionId": compute.get("subscriptionId", ""),
        "timeStamp": {"createdOn": _stamp(created), "expiresOn": _stamp(created + LIFE)},
        "vmId": compute.get("vmId", ""),
    }
    return {name: value for name, value in everything.items() if _INTRODUCED.get(name, "") <= version}


def _stamp(moment: dt.datetime) -> str:
    return moment.strftime("%m/%d/%y %H:%M:%S -0000")


class Signer:
    """Signs with a key made at first use, or returns the sample if the `cryptography` package is not installed."""

    def __init__(self) -> None:
        self.available = importlib.util.find_spec("cryptography") is not None
        self._credentials: tuple[EllipticCurvePrivateKey, Certificate] | None = None
        self._lock = threading.Lock()

    def sign(self, document: dict[str, Any]) -> str:
        """Return a SignedData, DER in base64, that includes the document and the certificate."""
        if not self.available:
            return SAMPLE_SIGNATURE
        # Imported here because the package is optional, and loading it takes longer than the rest of the start.
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import Encoding, pkcs7  # noqa: PLC0415

        with self._lock:
            if self._credentials is None:
                self._credentials = _make_credentials()
        key, certificate = self._credentials
        builder = pkcs7.PKCS7SignatureBuilder().set_data(compact(document))
        builder = builder.add_signer(certificate, key, SHA256())
        # Like the documented sample, the signature is over the content alone.
        options = [pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoAttributes]
        return base64.b64encode(builder.sign(Encoding.DER, options)).decode()


def _make_credentials() -> tuple[EllipticCurvePrivateKey, Certificate]:
    """Make a P-256 key, which is faster to make than an RSA key, and a self-signed certificate."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, COMMON_NAME)])
    today = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(COMMON_NAME)]), critical=False)
        .sign(key, SHA256())
    )
    return key, certificate
