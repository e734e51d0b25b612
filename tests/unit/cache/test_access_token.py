from __future__ import annotations

import json

import pytest

from imdsproxy.cache.access_token import MARGIN, TokenBody, read_token

# A captured answer, its life and its token replaced.
CAPTURED = (
    b'{"access_token":"eyJ0.eyJh.c2ln","client_id":"00000000-0000-0000-0000-000000000000","expires_in":"86317",'
    b'"expires_on":"1709895997","ext_expires_in":"86399","not_before":"1709809297",'
    b'"resource":"https://vault.azure.net","token_type":"Bearer"}'
)


def token(expires_in: str, *, more: str = "") -> bytes:
    return f'{{"access_token":"x"{more},"expires_in":{expires_in}}}'.encode()


def read(body: bytes) -> TokenBody:
    found = read_token(body)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("body", "life"),
    [
        (CAPTURED, 86317),
        (token('"3600"'), 3600),
        (token("3600"), 3600),
        (token('"0"'), 0),
        (token("0"), 0),
        (token('"604800"'), 604_800),
        (token('"03600"'), 3600),
        (b'{ "access_token" : "x" ,\r\n\t"expires_in" : "3600" }', 3600),
        (b'{"expires_in":3600,"access_token":"x"}', 3600),
        (b'\xef\xbb\xbf{"expires_in":3600,"access_token":"x"}', 3600),
        (token('"3600"', more=r',"note":"\"expires_in\":\"9\","'), 3600),
    ],
)
def test_token_life_is_expires_in(body: bytes, life: int) -> None:
    assert read(body).expires_in == life
    assert read(body).aged(0) == body.replace(b'"03600"', b'"3600"')


# A token of uncertain life is not stored.
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"expires_in"',
        b'[{"access_token":"x","expires_in":"3600"}]',
        CAPTURED[:-1],
        CAPTURED + b"}",
        CAPTURED.replace(b"Bearer", b"\xff"),
        CAPTURED.decode().encode("utf-16"),
        b'{"expires_in":"3600"}',
        b'{"access_token":null,"expires_in":"3600"}',
        b'{"access_token":1,"expires_in":"3600"}',
        b'{"access_token":"x"}',
        b'{"access_token":"x","expires_on":"1709895997"}',
        b'{"error":"invalid_request","error_description":"Identity not found"}',
        token("null"),
        token('""'),
        token('"-1"'),
        token("-1"),
        token('"+3600"'),
        token('" 3600"'),
        token('"3600 "'),
        token("3600.0"),
        token("3600.5"),
        token('"3600.5"'),
        token("36e2"),
        token('"0x10"'),
        token('"1,000"'),
        token("true"),
        token("NaN"),
        token('"NaN"'),
        token("Infinity"),
        token("[3600]"),
        token('{"expires_in":3600}'),
        token('"604801"'),
        token('"999999999"'),
        token('"9999999999"'),
        token("9" * 5_000),
        token('"' + "9" * 5_000 + '"'),
        token('"' + "\u0663" * 4 + '"'),
        token('"3600"', more=',"expires_in":"3600"'),
        token('"3600"', more=',"expires_in":"9"'),
        token('"3600"', more=',"inner":{"expires_in":"3600"}'),
        token('"3600"', more=',"inner":{"expires_in":"9"}'),
        b'{"access_token":"x","inner":{"expires_in":"3600"}}',
        b"[" * 100_000,
        b'{"access_token":"x","expires_in":"3600","deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_token_with_a_doubtful_life_is_not_read(body: bytes) -> None:
    assert read_token(body) is None


@pytest.mark.parametrize(
    "body",
    [
        rb'{"access_token":"x","expires\u005fin":"3600","inner":{"expires_in":"3600"}}',
        rb'{"access_token":"x","expires_in":"3600","expires\u005fin":"3600"}',
        rb'{"access_token":"x","inner":{"expires_in":"3600"},"\u0065xpires_in":3600}',
    ],
)
def test_life_that_cannot_be_aged_is_doubtful(body: bytes) -> None:
    found = read_token(body)
    assert found is None or int(json.loads(found.aged(3500))["expires_in"]) == 100


@pytest.mark.parametrize(
    ("seconds", "left"),
    [
        (0, b"86317"),
        (0.001, b"86316"),
        (0.999, b"86316"),
        (1, b"86316"),
        (1.001, b"86315"),
        (86017, b"300"),
        (86316, b"1"),
        (86316.5, b"0"),
        (86317, b"0"),
        (86318, b"0"),
        (10.0**12, b"0"),
    ],
)
def test_aged_rounds_down_and_keeps_every_other_byte(seconds: float, left: bytes) -> None:
    extended = b"%d" % max(0, int(86399 - seconds))
    assert read(CAPTURED).aged(seconds) == CAPTURED.replace(b"86317", left).replace(b"86399", extended)


@pytest.mark.parametrize(
    ("more", "aged"),
    [
        (',"refresh_in":"43200"', ',"refresh_in":"43100"'),
        (',"refresh_in":43200', ',"refresh_in":43100'),
        (',"refresh_in" : "50"', ',"refresh_in" : "0"'),
        (',"ext_expires_in":"86399","refresh_in":43200', ',"ext_expires_in":"86299","refresh_in":43100'),
        # No plain figure of the token's own: left as it is, and the life is read all the same.
        *(
            (each, each)
            for each in (',"refresh_in":"soon"', ',"refresh_in":-5', ',"refresh_in":1.5', ',"refresh_in":null')
        ),
        *((each, each) for each in (',"x":{"refresh_in":"43200"}', ',"refresh_in":"1","refresh_in":"2"')),
    ],
)
def test_other_figures_age_if_they_are_plain(more: str, aged: str) -> None:
    assert read(token('"3600"', more=more)).aged(100) == token('"3500"', more=aged)


def test_number_without_quotes_stays_without_quotes() -> None:
    assert read(token("3600")).aged(100) == token("3500")


def test_margin_is_five_minutes() -> None:
    assert MARGIN == 300
