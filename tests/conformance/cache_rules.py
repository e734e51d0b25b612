"""The rules of cache-tests, group by group, under their own names, with the tests of `test_cache` that concern them.

How long an answer of IMDS is fresh, and how long it may be served stale, is decided by the policy, not by the answer:
IMDS sends neither `Cache-Control` nor a validator. Rules about those are listed with that reason, and with the test
that shows it.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.conformance.rules import CACHE, Rule

HERE = "conformance/test_cache.py::"
AGE = HERE + "test_age_of_an_answer_counts"
POLICY = HERE + "test_policy_decides_whatever_the_answer_says"
STALE = HERE + "test_policy_decides_how_long_an_answer_is_served_stale"
VARY = HERE + "test_answer_that_varies_by_a_field_of_clients_is_not_stored"
REQUEST = HERE + "test_directive_of_a_request"
CONDITION = HERE + "test_condition_of_a_client_gets_the_whole_answer"
STATUS = HERE + "test_status_is_stored_or_not"
FIELD = HERE + "test_field_of_an_answer_is_kept_or_dropped"
METHOD = HERE + "test_other_methods_store_and_drop_nothing"
POST = HERE + "test_acknowledgement_drops_the_entry"
HIT = HERE + "test_hit_has_an_age_and_the_date_of_its_answer"
QUERY = HERE + "test_query_is_part_of_the_key"
RANGE = HERE + "test_part_is_neither_requested_nor_stored"
CLIENT = HERE + "test_credentials_and_cookies_of_a_client_reach_no_shared_fetch"
INTERIM = "integration/test_hostile_upstream.py::test_interim_responses_are_skipped"
HEAD = HERE + "test_head_of_a_document_is_refused"

BY_POLICY = "the policy decides: IMDS sends no such field"
NO_VALIDATOR = "IMDS sends no validator, so no conditional request is made"
NEVER_304 = "a condition is ignored, and a hit is whole: IMDS sends no validator"
NO_VARIANTS = "not stored at all: IMDS sends no `Vary`"
STATUSES = "only 200, and 400 and 404 for `IMDSPROXY_NEGATIVE_TTL`, are stored"
NOT_STORED = "such an answer is not stored: IMDS sends none"
FRESHENING = "no answer is freshened by a 304, because no conditional request is made"
ONLY_POST = "every method but GET and POST is 405, and POST goes to two endpoints only"
_FRESHNESS = "RFC 9111 section 4.2"
_CONTROL = "RFC 9111 section 5.2.2"


def _group(source: str, test: str, why: str, names: dict[str, str]) -> Iterator[Rule]:
    return (Rule(CACHE, name, words, source, test, why) for name, words in names.items())


AGES = {
    "age-parse-nonnumeric": ("a value that is no number is ignored", (b"abc",), False),
    "age-parse-negative": ("a negative value is ignored", (b"-7200",), False),
    "age-parse-float": ("a fraction is ignored", (b"7200.0",), False),
    "age-parse-large-minus-one": ("2^31 - 1 is stale", (b"2147483647",), True),
    "age-parse-large": ("2^31 is stale", (b"2147483648",), True),
    "age-parse-larger": ("more than 2^31 is stale", (b"2147483649",), True),
    "age-parse-suffix": ("the first of two members counts: `7200, 0`", (b"7200, 0",), True),
    "age-parse-prefix": ("the first of two members counts: `0, 7200`", (b"0, 7200",), False),
    "age-parse-suffix-twoline": ("the first of two fields counts: 7200 and 0", (b"7200", b"0"), True),
    "age-parse-prefix-twoline": ("the first of two fields counts: 0 and 7200", (b"0", b"7200"), False),
    "age-parse-dup-0": ("`0, 0` is fresh", (b"0, 0",), False),
    "age-parse-dup-0-twoline": ("twice 0 is fresh", (b"0", b"0"), False),
    "age-parse-dup-old": ("twice the same age is that age", (b"7200", b"7200"), True),
    "age-parse-parameter": ("a value with a parameter is no number", (b"7200;foo=bar",), False),
    "age-parse-numeric-parameter": ("a value with a number as its parameter is no number", (b"7200;foo=111",), False),
}
"""Each rule of age-parse: the `Age` fields of an answer, and whether they make it too old for its lifetimes."""

VARIES = {
    "vary-match": ("a matching request is a hit", (b"Foo",)),
    "vary-no-match": ("another value is no hit", (b"Foo",)),
    "vary-omit-stored": ("a field that the first request lacked is no hit", (b"Foo",)),
    "vary-omit": ("a field that this request lacks is no hit", (b"Foo",)),
    "vary-invalidate": ("two variants are stored", (b"Foo",)),
    "vary-cache-key": ("fields that are not named do not matter", (b"Foo",)),
    "vary-2-match": ("two fields that match are a hit", (b"Foo, Bar",)),
    "vary-2-no-match": ("one of two fields that differs is no hit", (b"Foo, Bar",)),
    "vary-2-match-omit": ("one of two fields that is missing is no hit", (b"Foo, Bar",)),
    "vary-3-match": ("three fields that match are a hit", (b"Foo, Bar, Baz",)),
    "vary-3-no-match": ("one of three fields that differs is no hit", (b"Foo, Bar, Baz",)),
    "vary-3-order": ("the order of fields does not matter", (b"Foo", b"Bar, Baz")),
    "vary-3-omit": ("a field that both requests lack matches", (b"Foo, Bar, Baz",)),
    "vary-star": ("`*` is no hit", (b"*",)),
    "vary-normalise-combine": ("fields of one name are joined before they are compared", (b"Foo",)),
    "vary-normalise-space": ("white space does not matter", (b"Foo",)),
    "vary-syntax-star": ("`*` is no hit", (b"*",)),
    "vary-syntax-star-star": ("`*, *` is no hit", (b"*, *",)),
    "vary-syntax-star-star-lines": ("`*` twice is no hit", (b"*", b"*")),
    "vary-syntax-empty-star": ("`, *` is no hit", (b", *",)),
    "vary-syntax-empty-star-lines": ("an empty one and `*` are no hit", (b"", b"*")),
    "vary-syntax-star-foo": ("`*, Foo` is no hit", (b"*, Foo",)),
    "vary-syntax-foo-star": ("`Foo, *` is no hit", (b"Foo, *",)),
}
"""Each rule of vary and vary-parse that names fields of clients: the `Vary` fields of an answer."""

_LANGUAGES = {
    "vary-normalise-lang-order": "the order of languages does not matter",
    "vary-normalise-lang-case": "the case of languages does not matter",
    "vary-normalise-lang-space": "white space between languages does not matter",
    "vary-normalise-lang-select": "the preferred language is selected",
}

DIRECTIVES = {
    "ccreq-ma0": ("`max-age=0` of a request renews", b"max-age=0", False),
    "ccreq-ma1": ("`max-age=1` of a request renews what is older", b"max-age=1", False),
    "ccreq-magreaterage": ("`max-age` of a request counts the age of the answer", b"max-age=600", False),
    "ccreq-max-stale": ("`max-stale` accepts a stale answer", b"max-stale=1000", False),
    "ccreq-max-stale-age": ("`max-stale` accepts an answer that is stale by its age", b"max-stale=1000", False),
    "ccreq-min-fresh": ("`min-fresh` renews what is not fresh for so long", b"min-fresh=2000", False),
    "ccreq-min-fresh-age": ("`min-fresh` counts the age of the answer", b"min-fresh=1000", False),
    "ccreq-no-cache": ("`no-cache` renews", b"no-cache", True),
    "ccreq-no-cache-lm": ("`no-cache` renews an answer with `Last-Modified`", b"no-cache", True),
    "ccreq-no-cache-etag": ("`no-cache` renews an answer with `ETag`", b"no-cache", True),
    "ccreq-no-store": ("`no-store` of a request is no hit", b"no-store", False),
}
"""Each rule of cc-request: the directive of a request, and whether it renews the entry here."""

_FRESH = {
    "freshness-none": "an answer without lifetime and validator is not reused",
    "freshness-max-age": "`max-age` is fresh until its end",
    "freshness-max-age-stale": "and not after it",
    "freshness-max-age-0": "`max-age=0` is not reused",
    "freshness-max-age-max-minus-1": "`max-age` of 2^31 - 1 is fresh",
    "freshness-max-age-max": "`max-age` of 2^31 is fresh",
    "freshness-max-age-max-plus-1": "`max-age` of 2^31 + 1 is fresh",
    "freshness-max-age-max-plus": "`max-age` of 99999999999 is fresh",
    "freshness-max-age-date": "an old `Date` counts as age",
    "freshness-max-age-expires": "`max-age` wins over a past `Expires`",
    "freshness-max-age-expires-invalid": "`max-age` wins over an invalid `Expires`",
    "freshness-max-age-0-expires": "`max-age=0` wins over a future `Expires`",
    "freshness-max-age-extension": "an unknown directive beside `max-age` is ignored",
    "freshness-max-age-case-insenstive": "a directive counts in any case",
    "freshness-max-age-negative": "a negative `max-age` is stale",
    "freshness-max-age-s-maxage-private": "a private cache ignores `s-maxage`",
    "freshness-max-age-s-maxage-private-multiple": "a private cache ignores `s-maxage` in a field of its own",
    "freshness-s-maxage-shared": "`s-maxage` is fresh until its end",
    "freshness-max-age-s-maxage-shared-longer": "a shorter `s-maxage` wins",
    "freshness-max-age-s-maxage-shared-longer-reversed": "a shorter `s-maxage` wins in any order",
    "freshness-max-age-s-maxage-shared-longer-multiple": "a shorter `s-maxage` wins in a field of its own",
    "freshness-max-age-s-maxage-shared-shorter": "a longer `s-maxage` wins",
    "freshness-max-age-s-maxage-shared-shorter-expires": "a longer `s-maxage` wins over a past `Expires`",
    "freshness-max-age-two-fresh-stale-sameline": "two `max-age` in a field, the second stale",
    "freshness-max-age-two-fresh-stale-sepline": "two `max-age` in two fields, the second stale",
    "freshness-max-age-two-stale-fresh-sameline": "two `max-age` in a field, the first stale",
    "freshness-max-age-two-stale-fresh-sepline": "two `max-age` in two fields, the first stale",
    "freshness-max-age-quoted": "a quoted number",
    "freshness-max-age-ignore-quoted": "a `max-age` within a quoted string before the real one is none",
    "freshness-max-age-ignore-quoted-rev": "a `max-age` within a quoted string after the real one is none",
    "freshness-max-age-space-before-equals": "a space before `=`",
    "freshness-max-age-space-after-equals": "a space after `=`",
    "freshness-max-age-leading-zero": "leading zeros are no harm",
    "freshness-max-age-single-quoted": "an apostrophe is no quote",
    "freshness-max-age-decimal-zero": "`3600.0`",
    "freshness-max-age-decimal-five": "`3600.5`",
    "freshness-max-age-a100": "`a100`",
    "freshness-max-age-100a": "`100a`",
}
_EXPIRES = {
    "freshness-expires-future": "a future `Expires` is fresh",
    "freshness-expires-past": "a past one is stale",
    "freshness-expires-present": "one that is now is stale",
    "freshness-expires-old-date": "one before `Date` is stale",
    "freshness-expires-invalid": "`0` is stale",
    "freshness-expires-invalid-date": "an invalid `Date` is no harm",
    "freshness-expires-32bit": "2^32 seconds since 1970",
    "freshness-expires-far-future": "far in the future",
    "freshness-expires-rfc850": "RFC 850's form",
    "freshness-expires-ansi-c": "asctime's form",
    "freshness-expires-wrong-case-weekday": "a weekday in the wrong case",
    "freshness-expires-wrong-case-month": "a month in the wrong case",
    "freshness-expires-wrong-case-tz": "GMT in the wrong case",
    "freshness-expires-invalid-utc": "UTC in place of GMT is stale",
    "freshness-expires-invalid-aest": "another time zone is stale",
    "freshness-expires-invalid-2-digit-year": "a year of two digits is stale",
    "freshness-expires-invalid-no-comma": "without a comma it is stale",
    "freshness-expires-invalid-multiple-spaces": "with two spaces it is stale",
    "freshness-expires-invalid-date-dashes": "with dashes it is stale",
    "freshness-expires-invalid-time-periods": "with dots in the time it is stale",
    "freshness-expires-invalid-1-digit-hour": "with an hour of one digit it is stale",
    "freshness-expires-invalid-multiple-lines": "in two fields it is stale",
}
_RESPONSE = {
    "cc-resp-private-shared": "a shared cache does not store `private`",
    "cc-resp-private-private": "a private cache reuses `private`",
    "cc-resp-no-store": "`no-store` is not stored",
    "cc-resp-no-store-case-insensitive": "in any case",
    "cc-resp-no-store-fresh": "whatever its `max-age` and `Expires`",
    "cc-resp-no-store-old-new": "an older answer is used after a newer one with `no-store`",
    "cc-resp-no-store-old-max-age": "an older answer is used after a newer one with `no-store, max-age=0`",
    "cc-resp-no-cache": "`no-cache` is not used without validation",
    "cc-resp-no-cache-case-insensitive": "in any case",
    "cc-resp-no-cache-revalidate": "`no-cache` is stored and validated",
    "cc-resp-no-cache-revalidate-fresh": "whatever its `max-age` and `Expires`",
    "headers-omit-headers-listed-in-Cache-Control-no-cache-single": "a field that `no-cache` names is not stored",
    "headers-omit-headers-listed-in-Cache-Control-no-cache": "fields that `no-cache` names are not stored",
    "cc-resp-must-revalidate-fresh": "`must-revalidate` is used while it is fresh",
    "cc-resp-must-revalidate-stale": "and validated when it is stale",
    "cc-resp-immutable-fresh": "`immutable` is used while it is fresh",
    "cc-resp-immutable-stale": "and validated when it is stale",
}
_CDN = {
    "cdn-max-age": "`CDN-Cache-Control: max-age` is fresh until its end",
    "cdn-max-age-max": "of 2^31",
    "cdn-max-age-max-plus": "of 99999999999",
    "cdn-max-age-space-before-equals": "with a space before `=`",
    "cdn-max-age-space-after-equals": "with a space after `=`",
    "cdn-max-age-0": "`max-age=0` is not reused",
    "cdn-max-age-extension": "an unknown directive is ignored",
    "cdn-max-age-case-insensitive": "in another case",
    "cdn-max-age-expires": "wins over a past `Expires`",
    "cdn-max-age-cc-max-age-invalid-expires": "wins over an invalid `Expires`",
    "cdn-max-age-0-expires": "`max-age=0` wins over a future `Expires`",
    "cdn-max-age-short-cc-max-age": "a longer one wins over `Cache-Control`",
    "cdn-max-age-long-cc-max-age": "a shorter one wins over `Cache-Control`",
    "cdn-private": "`private` is not reused",
    "cdn-no-cache": "`no-cache` is not reused",
    "cdn-no-store-cc-fresh": "`no-store` is not stored",
    "cdn-fresh-cc-nostore": "wins over `no-store` in `Cache-Control`",
    "cdn-cc-invalid-sh-type-unknown": "an unknown type is ignored",
    "cdn-cc-invalid-sh-type-wrong": "a wrong type is ignored",
}
_CDN_FIELDS = {
    "cdn-remove-header": "the field is forwarded",
    "cdn-remove-age-exceed": "`Age` is sent beyond `Cache-Control`'s lifetime",
    "cdn-date-update-exceed": "`Date` is kept beyond it",
    "cdn-expires-update-exceed": "`Expires` is kept beyond it",
}
_ETAGS = {
    "conditional-etag-strong-respond": "304 to a matching strong tag",
    "conditional-304-etag": "the 304 has the tag",
    "conditional-etag-precedence": "`If-None-Match` wins over `If-Modified-Since`",
    "conditional-etag-strong-respond-obs-text": "304 to a tag with bytes beyond ASCII",
    "conditional-etag-quoted-respond-unquoted": "a tag without quotes to one with",
    "conditional-etag-unquoted-respond-unquoted": "a tag without quotes to one without",
    "conditional-etag-unquoted-respond-quoted": "a tag with quotes to one without",
    "conditional-etag-weak-respond": "304 to a matching weak tag",
    "conditional-etag-weak-respond-lowercase": "with `w/`",
    "conditional-etag-weak-respond-backslash": "with a backslash",
    "conditional-etag-weak-respond-omit-slash": "without the slash",
    "conditional-etag-strong-respond-multiple-first": "304 to the first of several tags",
    "conditional-etag-strong-respond-multiple-second": "304 to one in the middle",
    "conditional-etag-strong-respond-multiple-last": "304 to the last",
    "conditional-lm-fresh": "304 to the same `Last-Modified`",
    "conditional-lm-fresh-earlier": "304 to a later `If-Modified-Since`",
    "conditional-lm-fresh-no-lm": "304 by the `Date` of an answer without `Last-Modified`",
    "conditional-lm-fresh-rfc850": "304 to a date in RFC 850's form",
}
_VALIDATION = {
    "conditional-etag-vary-headers": "a conditional request has the fields that `Vary` names",
    "conditional-etag-vary-headers-mismatch": "a tag of another variant is used",
    "conditional-etag-strong-generate": "a stale answer is validated by its strong tag",
    "conditional-etag-weak-generate-weak": "a stale answer is validated by its weak tag",
    "conditional-etag-strong-generate-unquoted": "a tag without quotes is sent with them",
    "conditional-etag-forward": "a client's `If-None-Match` is forwarded on a miss",
    "conditional-etag-forward-unquoted": "quotes are added to it",
    "conditional-lm-stale": "304 to a stale answer after validation",
}
_STALE = {
    "stale-close": "a stale answer is served when the server closes the connection",
    "stale-503": "a stale answer is served instead of a 503",
}
_STALE_BY_FIELD = {
    "stale-close-must-revalidate": "not with `must-revalidate`",
    "stale-close-proxy-revalidate": "not with `proxy-revalidate`",
    "stale-close-no-cache": "not with `no-cache`",
    "stale-close-s-maxage=2": "not with `s-maxage`",
    "stale-while-revalidate": "`stale-while-revalidate` is honoured",
    "stale-while-revalidate-window": "and not after it",
    "stale-sie-close": "`stale-if-error` is honoured when the connection closes",
    "stale-sie-503": "`stale-if-error` is honoured at a 503",
}
_WARNINGS = {
    "stale-warning-stored": "`Warning` with an answer that was stale from the start",
    "stale-warning-become": "`Warning` with an answer that became stale",
}
FIELDS = {
    "kept": (
        *("Test-Header", "X-Test-Header", "Content-Foo", "X-Content-Foo", "Cache-Control", "Content-Location"),
        *("Content-MD5", "Content-Range", "Content-Security-Policy", "Content-Type", "Clear-Site-Data", "ETag"),
        *("Expires", "Public-Key-Pins", "Set-Cookie2", "X-Frame-Options", "X-XSS-Protection"),
    ),
    "dropped": (
        *("Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization"),
        *("Proxy-Connection", "TE", "Transfer-Encoding", "Upgrade"),
    ),
    "prevents storing": ("Content-Encoding", "Set-Cookie"),
}
"""The fields of cache-tests by what becomes of them. Content-Length follows from the body."""
REUSED = (200,)
NEVER = (203, 204, 299, 301, 302, 303, 307, 308, 410, 499, 500, 502, 503, 504, 599)
REMEMBERED = (400, 404)
HEURISTIC_REUSED = (200, 203, 204, 404, 405, 410, 414, 501)
HEURISTIC_NOT = (201, 202, 403, 502, 503, 504)
DELTAS = (5, 10, 30, 60, 300, 600, 1200, 1800, 3600, 43_200, 86_400)


def _fields() -> Iterator[Rule]:
    storing, updating = "RFC 9111 section 3.1", "RFC 9111 section 3.2"
    yield Rule(
        CACHE, "headers-omit-headers-listed-in-Connection", "fields that `Connection` names are dropped", storing, FIELD
    )
    for outcome, names in FIELDS.items():
        for name in names:
            why = NOT_STORED if outcome == "prevents storing" else ""
            word = "not stored" if outcome == "dropped" else "stored"
            yield Rule(CACHE, f"headers-store-{name}", f"`{name}` is {word}", storing, FIELD, why)
            if outcome != "dropped":
                words = f"`{name}` is taken from a 304"
                yield Rule(CACHE, f"304-etag-update-response-{name}", words, updating, "", FRESHENING)
    yield Rule(
        CACHE, "headers-store-Content-Length", "`Content-Length` is stored", storing, FIELD, "written from the body"
    )
    yield Rule(
        *(CACHE, "304-etag-update-response-Content-Length", "`Content-Length` is not taken from a 304", updating),
        *("", FRESHENING),
    )
    yield Rule(CACHE, "304-lm-use-stored-Test-Header", "a field that a 304 lacks is kept", updating, "", FRESHENING)


def _statuses() -> Iterator[Rule]:
    understand, heuristic = "RFC 9111 section 5.2.2.3", "RFC 9111 section 4.2.2"
    for status in sorted({*REUSED, *NEVER, *REMEMBERED}):
        why = STATUSES if status in NEVER else BY_POLICY
        yield Rule(CACHE, f"status-{status}-fresh", f"a fresh {status} is reused", "RFC 9111 section 3", STATUS, why)
        yield Rule(CACHE, f"status-{status}-stale", f"a stale {status} is not reused", "RFC 9111 section 4", STATUS)
    yield Rule(
        CACHE,
        "status-599-must-understand",
        "an unknown status with `must-understand` is not reused",
        understand,
        STATUS,
    )
    yield Rule(
        *(CACHE, "status-200-must-understand", "`must-understand` wins over `no-store` of a known status", understand),
        *(POLICY, BY_POLICY),
    )
    for status in HEURISTIC_REUSED:
        words = f"a {status} without a lifetime is fresh by its `Last-Modified`"
        why = BY_POLICY if status in {200, 404} else STATUSES
        yield Rule(CACHE, f"heuristic-{status}-cached", words, heuristic, STATUS, why)
    for status in HEURISTIC_NOT:
        words = f"a {status} is never fresh by its `Last-Modified`"
        yield Rule(CACHE, f"heuristic-{status}-not_cached", words, heuristic, STATUS)
    yield Rule(
        CACHE, "heuristic-599-not_cached", "an unknown status is not fresh by its `Last-Modified`", heuristic, STATUS
    )
    yield Rule(CACHE, "heuristic-599-cached", "but with `public`", heuristic, STATUS, STATUSES)
    for delta in DELTAS:
        words = f"an answer last modified {delta} s ago is fresh for a while"
        yield Rule(CACHE, f"heuristic-delta-{delta}", words, heuristic, POLICY, BY_POLICY)


def _invalidation() -> Iterator[Rule]:
    source = "RFC 9111 section 4.4"
    yield Rule(CACHE, "invalidate-POST", "a successful POST drops the entry", source, POST)
    yield Rule(
        CACHE, "invalidate-POST-failed", "a failed POST does not", source, POST, "it does: it may have reached IMDS"
    )
    yield Rule(CACHE, "invalidate-POST-location", "and that of `Location`", source, "", "IMDS sends no `Location`")
    yield Rule(CACHE, "invalidate-POST-cl", "and that of `Content-Location`", source, "", "IMDS sends none")
    for method in ("PUT", "DELETE", "M-SEARCH"):
        for suffix in ("", "-failed", "-location", "-cl"):
            name = f"invalidate-{method}{suffix}"
            yield Rule(CACHE, name, f"the same for {method}", source, METHOD, ONLY_POST)
    words = "the answer to a POST is used for a GET"
    yield Rule(CACHE, "method-POST", words, "RFC 9110 section 9.3.3", POST, "never: it is not the document")


RULES = (
    *(Rule(CACHE, name, words, "RFC 9111 section 5.1", AGE) for name, (words, _, _) in AGES.items()),
    Rule(CACHE, "freshness-max-age-age", "an answer older than its lifetime is stale", _FRESHNESS, AGE),
    Rule(CACHE, "cdn-max-age-age", "the same for `CDN-Cache-Control`", "RFC 9213 section 2", AGE),
    Rule(CACHE, "freshness-expires-age-slow-date", "the same for `Expires`, `Date` slow", _FRESHNESS, AGE),
    Rule(CACHE, "freshness-expires-age-fast-date", "the same for `Expires`, `Date` fast", _FRESHNESS, AGE),
    Rule(
        CACHE,
        "other-authorization",
        "an answer to a request with `Authorization` is not reused",
        "RFC 9111 section 3.5",
        CLIENT,
        "the field is not sent with a stored fetch, so no answer depends on it",
    ),
    *_group(
        "RFC 9111 section 3.5",
        CLIENT,
        "reused in any case, because the field is not sent",
        {
            "other-authorization-public": "but with `public`",
            "other-authorization-must-revalidate": "but with `must-revalidate`",
            "other-authorization-smaxage": "but with `s-maxage`",
        },
    ),
    *_group(_FRESHNESS, POLICY, BY_POLICY, _FRESH),
    *_group(_CONTROL, POLICY, BY_POLICY, _RESPONSE),
    *_group("RFC 9111 section 5.3", POLICY, BY_POLICY, _EXPIRES),
    *_group("RFC 9213 section 2", POLICY, BY_POLICY, _CDN),
    *_group("RFC 9213 section 2", HIT, "", _CDN_FIELDS),
    *(
        Rule(
            CACHE,
            name,
            words,
            "RFC 9111 section 5.2.1",
            REQUEST,
            "" if renews else "a request's wish that may be ignored",
        )
        for name, (words, _, renews) in DIRECTIVES.items()
    ),
    Rule(
        CACHE,
        "ccreq-oic",
        "`only-if-cached` without an entry is 504",
        "RFC 9111 section 5.2.1.7",
        REQUEST,
        "ignored, as every directive but `no-cache`",
    ),
    *_group("RFC 9111 section 4.3.2", CONDITION, NEVER_304, _ETAGS),
    *_group("RFC 9111 section 4.3.1", CONDITION, NO_VALIDATOR, _VALIDATION),
    *_fields(),
    *_statuses(),
    *_group(
        "RFC 9110 section 15.2",
        INTERIM,
        "interim answers end at the proxy: IMDS sends none",
        {
            "interim-102": "a 102 is passed through, and the final answer stored",
            "interim-103": "a 103 is passed through, and the final answer stored",
        },
    ),
    *_group(
        "RFC 9111 section 3",
        INTERIM,
        "",
        {
            "interim-not-cached": "an interim answer is not stored",
            "interim-no-header-reuse": "fields of an interim answer are not stored",
        },
    ),
    *_invalidation(),
    *_group(
        "RFC 9111 section 5.1",
        HIT,
        "",
        {
            "other-age-gen": "a hit has `Age`",
            "other-age-delay": "the time that the answer took is part of its age",
            "other-age-update-expires": "`Age` grows, with `Expires`",
            "other-age-update-max-age": "`Age` grows, with `max-age`",
        },
    ),
    *_group(
        "RFC 9110 section 6.6.1",
        HIT,
        "",
        {
            "other-date-update": "`Date` stays",
            "other-date-update-expires": "`Date` stays, with `Expires`",
            "other-date-update-expires-update": "`Expires` stays",
        },
    ),
    *_group(
        "RFC 9111 section 2",
        QUERY,
        "",
        {
            "query-args-different": "another query is another key",
            "query-args-same": "the same query is a hit",
        },
    ),
    Rule(
        CACHE,
        "other-heuristic-content-disposition-attachment",
        "an attachment is fresh by its `Last-Modified`",
        "RFC 9111 section 4.2.2",
        POLICY,
        BY_POLICY,
    ),
    Rule(
        CACHE,
        "other-fresh-content-disposition-attachment",
        "a fresh attachment is reused",
        _FRESHNESS,
        POLICY,
        BY_POLICY,
    ),
    Rule(CACHE, "other-set-cookie", "an answer with `Set-Cookie` is reused", "RFC 9111 section 7.3", FIELD, NOT_STORED),
    Rule(CACHE, "other-cookie", "a request with `Cookie` gets a hit", "RFC 9111 section 3", CLIENT),
    *_group(
        "RFC 9110 section 14.2",
        RANGE,
        "`Range` is ignored, and 206 not stored: IMDS sends no parts",
        {
            "partial-store-partial-reuse-partial": "a part is stored and reused",
            "partial-store-complete-reuse-partial": "a part of a whole is served",
            "partial-store-complete-reuse-partial-no-last": "to the end of the whole",
            "partial-store-complete-reuse-partial-suffix": "the last bytes of the whole",
            "partial-store-partial-reuse-partial-byterange": "a part of a part is served",
            "partial-store-partial-reuse-partial-absent": "to the end of the part",
            "partial-store-partial-reuse-partial-suffix": "the last bytes of the part",
            "partial-store-partial-complete": "a part is completed",
            "partial-use-headers": "fields of the new part are used",
            "partial-use-stored-headers": "fields that it lacks are kept",
        },
    ),
    *_group(
        "RFC 9111 section 5.4",
        REQUEST,
        "",
        {
            "pragma-request-no-cache": "`Pragma: no-cache` of a request is ignored",
            "pragma-request-extension": "another `Pragma` of a request is ignored",
        },
    ),
    *_group(
        "RFC 9111 section 5.4",
        POLICY,
        "",
        {
            "pragma-response-no-cache": "`Pragma: no-cache` of an answer is ignored",
            "pragma-response-no-cache-heuristic": "with `Last-Modified` too",
            "pragma-response-extension": "another `Pragma` of an answer is ignored",
        },
    ),
    *_group("RFC 9111 section 4.2.4", STALE, "", _STALE),
    *_group("RFC 9111 section 4.2.4", STALE, BY_POLICY, _STALE_BY_FIELD),
    *_group("RFC 9111 section 5.5", STALE, "`Warning` is obsolete; `Cache-Status` has the reason", _WARNINGS),
    *_group(
        "RFC 9111 section 4.3.5",
        HEAD,
        "HEAD of a document is 405",
        {
            "head-writethrough": "HEAD goes to the server while the entry is stale",
            "head-200-retain": "fields that its answer lacks are kept",
            "head-200-freshness-update": "its answer renews the lifetime",
            "head-200-update": "its answer renews the fields",
            "head-410-update": "a 410 to it renews the fields",
        },
    ),
    *(
        Rule(
            CACHE,
            name,
            words,
            "RFC 9111 section 4.1",
            VARY,
            "" if b"*" in b"".join(values) or "no hit" in words else NO_VARIANTS,
        )
        for name, (words, values) in VARIES.items()
    ),
    *_group(
        "RFC 9111 section 4.1", VARY, "the same for every client: a stored fetch has no field of a client", _LANGUAGES
    ),
)
