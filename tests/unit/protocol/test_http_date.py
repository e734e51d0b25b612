from __future__ import annotations

import pytest

from imdsproxy.protocol.http_date import read_http_date


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        # The example of RFC 9110 section 5.6.7, in its three forms.
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 784111777),
        (b"Sun Nov  6 08:49:37 1994", 784111777),
        (b"Sunday, 06-Nov-26 08:49:37 GMT", 1793954977),
        (b" Thu, 01 Jan 1970 00:00:00 GMT ", 0),
        (b"Thu, 29 Feb 2024 23:59:60 GMT", 1709251200),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", 253402300799),
        (b"", None),
        (b"120", None),
        (b"Sun, 06 Nov 1994 08:49:37", None),
        (b"Sun, 06 Nov 1994 08:49:37 UTC", None),
        (b"Sun, 6 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 06 nov 1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 24:00:00 GMT", None),
        (b"Sun, 06 Nov 1994 08:60:00 GMT", None),
        (b"Sun, 00 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 31 Nov 1994 08:49:37 GMT", None),
        (b"Thu, 29 Feb 2023 08:49:37 GMT", None),
        (b"Wed, 31 Dec 1969 23:59:59 GMT", None),
        (b"Sun, 06 Nov 0000 08:49:37 GMT", None),
        ("Sun, 06 Nov ١٩٩٤ 08:49:37 GMT".encode(), None),
    ],
)
def test_date_is_read_in_exactly_three_forms(value: bytes, seconds: int | None) -> None:
    assert read_http_date(value) == seconds
