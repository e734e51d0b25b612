"""Read an HTTP date as seconds since 1970 (RFC 9110 section 5.6.7)."""

from __future__ import annotations

import calendar
import re

_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_MONTH = rb"(?P<month>" + b"|".join(_MONTHS) + rb")"
_TIME = rb"(?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d):(?P<second>[0-5]\d|60)"
_FORMS = (
    # IMF-fixdate: Sun, 06 Nov 1994 08:49:37 GMT
    re.compile(rb"[A-Z][a-z]{2}, (?P<day>\d\d) " + _MONTH + rb" (?P<year>\d{4}) " + _TIME + rb" GMT"),
    # RFC 850: Sunday, 06-Nov-94 08:49:37 GMT
    re.compile(rb"[A-Z][a-z]{5,8}, (?P<day>\d\d)-" + _MONTH + rb"-(?P<year>\d\d) " + _TIME + rb" GMT"),
    # asctime: Sun Nov  6 08:49:37 1994
    re.compile(rb"[A-Z][a-z]{2} " + _MONTH + rb" (?P<day>[ \d]\d) " + _TIME + rb" (?P<year>\d{4})"),
)
# RFC 850 writes two digits of the year. A service that answers today means a year of this century.
_CENTURY = 2000
_FIRST_YEAR = 1970


def read_http_date(value: bytes) -> int | None:
    """Return a date in any of HTTP's three forms as seconds since 1970, or None if it is malformed."""
    match = next((found for form in _FORMS if (found := form.fullmatch(value.strip()))), None)
    if match is None:
        return None
    year = int(match["year"]) + (_CENTURY if len(match["year"]) == len("94") else 0)
    month, day = _MONTHS.index(match["month"]) + 1, int(match["day"])
    if year < _FIRST_YEAR or not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    return calendar.timegm((year, month, day, int(match["hour"]), int(match["minute"]), int(match["second"])))
