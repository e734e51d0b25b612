"""Attested data: a description of the machine, signed as PKCS#7 by a certificate of the emulator.

Fields, time formats and the lifetime of six hours: Microsoft's IMDS pages of 2020 and 2025.
"""

from __future__ import annotations

import base64
import datetime as dt
from typing import Any

from imdsproxy.emulator.keys import Keys
from imdsproxy.emulator.messages import compact

DOMAIN = "metadata.azure.com"
COMMON_NAME = f"emulator.{DOMAIN}"
LIFE = dt.timedelta(hours=6)
UNSIGNED_NOTICE = (
    "the emulator signs no access token, and serves Microsoft's sample attested document: the cryptography package, "
    "which it needs to sign its own, is not installed (requirements/emulator.txt in the source locks it; `make demo` "
    "installs it)"
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
    """Signs with a certificate of the emulator, or returns the sample if `cryptography` is not installed."""

    def __init__(self, keys: Keys | None = None) -> None:
        self._keys = Keys() if keys is None else keys

    @property
    def available(self) -> bool:
        """Whether it signs."""
        return self._keys.available

    def sign(self, document: dict[str, Any], domain: str = DOMAIN) -> str:
        """Return a SignedData, DER in base64, that includes the document and the certificate that signed it.

        Like the documented sample, it includes no certificate of an authority, and signs the content alone.

        Args:
            document: The document.
            domain: The domain of the cloud's certificates.
        """
        if not self.available:
            return SAMPLE_SIGNATURE
        # Imported here because the package is optional, and loading it takes longer than the rest of the start.
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import Encoding, pkcs7  # noqa: PLC0415

        credentials = self._keys.credentials(domain)
        builder = pkcs7.PKCS7SignatureBuilder().set_data(compact(document))
        builder = builder.add_signer(credentials.certificate, credentials.key, SHA256())
        options = [pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoAttributes]
        return base64.b64encode(builder.sign(Encoding.DER, options)).decode()
