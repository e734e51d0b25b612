"""Rules of http-conformance about the fields, statuses and bodies that a server sends."""

from __future__ import annotations

from collections.abc import Iterator

from tests.conformance.rules import CISPA, Rule

HERE = "conformance/test_fields.py::"
KNOWN = HERE + "test_own_answers_have_known_fields_of_the_right_form"
HEAD = HERE + "test_head_of_a_page_has_the_fields_of_a_get"
OLD = HERE + "test_http_1_0_gets_no_chunks"
CLOSES = HERE + "test_last_answer_says_close"
PASSED = HERE + "test_answers_of_imds_keep_their_fields_and_get_date_and_length"
BODILESS = "integration/test_hostile_upstream.py::test_answer_without_a_body_is_passed_on"
POLICY = "conformance/test_cache.py::test_policy_decides_whatever_the_answer_says"
UPGRADE = "integration/attacks/test_open_proxy.py::test_upgrade_is_ignored"

NEVER_SENT = "the proxy sends no such field of its own, and passes on what IMDS sends"
NO_SUCH_STATUS = "the proxy has no such answer of its own, and passes on what IMDS sends"
NO_COOKIES = "the proxy sets no cookie, and stores no answer with one"
NOT_HTTP_1 = "the proxy speaks HTTP/1.1 only"
SEMANTICS = "RFC 9110 section "
_SENT = {
    "age_grammar": ("`Age` is a number", "RFC 9111 section 5.1"),
    "cache_control_grammar": ("`Cache-Control` is a list of directives", "RFC 9111 section 5.2"),
    "retry_after_grammar": ("`Retry-After` is seconds or a date", SEMANTICS + "10.2.3"),
    "date_grammar": ("`Date` has its one form", SEMANTICS + "5.6.7"),
    "content_type_grammar": ("`Content-Type` is a media type", SEMANTICS + "8.3"),
    "content_length_grammar": ("`Content-Length` has digits only", SEMANTICS + "8.6"),
    "connection_grammar": ("`Connection` is a list of options", SEMANTICS + "7.6.1"),
    "allow_grammar": ("`Allow` is a list of methods", SEMANTICS + "10.2.1"),
    "vary_grammar": ("`Vary` is a list of names, or `*`", SEMANTICS + "12.5.5"),
    "csp_grammar": ("`Content-Security-Policy` is a list of directives", "CSP 3, section 3.1"),
    "xcto_grammar": ("`X-Content-Type-Options` is `nosniff`", "Fetch, section 3.6"),
    "xfo_grammar": ("`X-Frame-Options` is DENY or SAMEORIGIN", "HTML, section 7.5"),
    "coop_grammar": ("`Cross-Origin-Opener-Policy` has one of its values", "HTML, section 7.1.3"),
    "corp_grammar": ("`Cross-Origin-Resource-Policy` has one of its values", "Fetch, section 3.7"),
    "duplicate_fields": ("a field that is no list is sent once", SEMANTICS + "5.3"),
    "duplicate_csp": ("one `Content-Security-Policy` only", "CSP 3, section 3.1"),
    "server_header_long": ("`Server` has no more detail than needed", SEMANTICS + "10.2.4"),
    "content_type_header_required": ("an answer with a body has `Content-Type`", SEMANTICS + "8.3"),
    "date_header_required": ("every answer but 1xx and 5xx has `Date`", SEMANTICS + "6.6.1"),
    "no_bare_cr": ("no CR without LF in a head", "RFC 9112 section 2.2"),
    "field_name_nonvisible_asciichars": ("a name is visible ASCII, without capitals", "RFC 9113 section 8.2.1"),
    "field_name_colon_except_for_pseudo_header_fields": ("a name has no colon", "RFC 9113 section 8.2.1"),
    "field_value_zero_value_lf_cr": ("a value has no NUL, CR or LF", SEMANTICS + "5.5"),
    "field_value_start_or_end_with_whitespace": ("a value has no white space around it", SEMANTICS + "5.5"),
    "code_405_allow": ("405 has `Allow`", SEMANTICS + "15.5.6"),
    "sts_header_http": ("no `Strict-Transport-Security` over HTTP", "RFC 6797 section 7.2"),
}
"""Rules that the proxy's own answers keep."""
_NOT_SENT = {
    "server_grammar": ("`Server` has its form", SEMANTICS + "10.2.4"),
    "coep_grammar": ("`Cross-Origin-Embedder-Policy` has one of its values", "HTML, section 7.1.4"),
    "csp_ro_grammar": ("`Content-Security-Policy-Report-Only` is a list of directives", "CSP 3, section 3.2"),
    "permissions_policy_grammar": ("`Permissions-Policy` has its form", "Permissions Policy, section 5.1"),
    "sts_grammar": ("`Strict-Transport-Security` has its form", "RFC 6797 section 6.1"),
    "sts_directives_only_allowed_once": ("each of its directives once", "RFC 6797 section 6.1"),
    "sts_max_age": ("it has `max-age`", "RFC 6797 section 6.1.1"),
    "only_one_sts_header_allowed": ("it is sent once", "RFC 6797 section 7.1"),
    "access_control_allow_origin_grammar": ("`Access-Control-Allow-Origin` has its form", "Fetch, section 3.3"),
    "access_control_allow_credentials_grammar": ("`Access-Control-Allow-Credentials` is `true`", "Fetch, section 3.3"),
    "access_control_expose_headers_grammar": ("`Access-Control-Expose-Headers` is a list", "Fetch, section 3.3"),
    "access_control_max_age_grammar": ("`Access-Control-Max-Age` is a number", "Fetch, section 3.3"),
    "access_control_allow_methods_grammar": ("`Access-Control-Allow-Methods` is a list", "Fetch, section 3.3"),
    "access_control_allow_headers_grammar": ("`Access-Control-Allow-Headers` is a list", "Fetch, section 3.3"),
    "proxy_authorization_grammar": ("`Proxy-Authorization` has its form", SEMANTICS + "11.7.2"),
    "location_header_grammar": ("`Location` is a reference", SEMANTICS + "10.2.2"),
    "last_modified_grammar": ("`Last-Modified` is a date", SEMANTICS + "8.8.2"),
    "expires_grammar": ("`Expires` is a date", "RFC 9111 section 5.3"),
    "etag_grammar": ("`ETag` is a quoted tag", SEMANTICS + "8.8.3"),
    "range_grammar": ("`Content-Range` has its form", SEMANTICS + "14.4"),
    "content_language_grammar": ("`Content-Language` is a list of tags", SEMANTICS + "8.5"),
    "content_encoding_grammar": ("`Content-Encoding` is a list of codings", SEMANTICS + "8.4"),
    "accept_ranges_grammar": ("`Accept-Ranges` is a list of units", SEMANTICS + "14.3"),
    "accept_encoding_grammar": ("`Accept-Encoding` in an answer has its form", SEMANTICS + "12.5.3"),
    "accept_patch_grammar": ("`Accept-Patch` is a list of media types", "RFC 5789 section 3.1"),
    "accept_patch_presence": ("`Accept-Patch` where PATCH is accepted", "RFC 5789 section 3.1"),
    "duplicate_csp_ro": ("one `Content-Security-Policy-Report-Only` only", "CSP 3, section 3.2"),
    "redirect_after_upgrade_insecure_requests": ("a redirect to HTTPS if the client asks", "Upgrade Insecure Requests"),
    "STS_header_after_upgrade_insecure_requests": ("`Strict-Transport-Security` then", "Upgrade Insecure Requests"),
}
_NO_STATUS = {
    "send_upgrade_426": ("426 has `Upgrade`", SEMANTICS + "15.5.22"),
    "code_300_location": ("300 has `Location`", SEMANTICS + "15.4.1"),
    "code_300_metadata": ("300 has a body", SEMANTICS + "15.4.1"),
    "code_301_location": ("301 has `Location`", SEMANTICS + "15.4.2"),
    "code_302_location": ("302 has `Location`", SEMANTICS + "15.4.3"),
    "code_303_location": ("303 has `Location`", SEMANTICS + "15.4.4"),
    "code_307_location": ("307 has `Location`", SEMANTICS + "15.4.8"),
    "code_308_location": ("308 has `Location`", SEMANTICS + "15.4.9"),
    "code_415_unsupported_media_type": ("415 has `Accept` or `Accept-Encoding`", SEMANTICS + "15.5.16"),
    "code_416_content_range": ("416 has `Content-Range`", SEMANTICS + "15.5.17"),
    "code_206_content_range": ("206 has `Content-Range`, or several parts", SEMANTICS + "15.3.7"),
    "code_206_content_range_of_multiple_part_response": (
        "206 of several parts has no `Content-Range`",
        SEMANTICS + "15.3.7",
    ),
    "code_206_headers": ("206 has the fields that a 200 would have", SEMANTICS + "15.3.7"),
    "code_304_headers": ("304 has the fields that a 200 would have", SEMANTICS + "15.4.5"),
    "code_401_www_authenticate": ("401 has `WWW-Authenticate`", SEMANTICS + "15.5.2"),
    "code_407_proxy_authenticate": ("407 has `Proxy-Authenticate`", SEMANTICS + "15.5.8"),
    "post_invalid_response_codes": ("206, 304 and 416 answer no POST", SEMANTICS + "9.3.3"),
}
_COOKIES = {
    "cookie_grammar": ("`Set-Cookie` has its form", "RFC 6265 section 4.1.1"),
    "duplicate_cookie_attribute": ("each of its attributes once", "RFC 6265 section 4.1.1"),
    "duplicate_cookies": ("each cookie once", "RFC 6265 section 4.1.1"),
    "cookie_IMF_fixdate": ("its date has the one form", "RFC 6265 section 4.1.1"),
}
_DIRECTIVES = {
    "response_directive_no_cache": "`no-cache` of an answer is obeyed",
    "response_directive_private": "`private` of an answer is obeyed",
    "response_directive_max_age": "`max-age` of an answer is obeyed",
    "response_directive_s_maxage": "`s-maxage` of an answer is obeyed",
}


def _group(test: str, why: str, names: dict[str, tuple[str, str]]) -> Iterator[Rule]:
    return (Rule(CISPA, name, words, source, test, why) for name, (words, source) in names.items())


def _rule(name: str, words: str, source: str, test: str, why: str = "") -> Rule:
    return Rule(CISPA, name, words, source, test, why)


RULES = (
    *_group(KNOWN, "", _SENT),
    *_group(KNOWN, NEVER_SENT, _NOT_SENT),
    *_group(PASSED, NO_SUCH_STATUS, _NO_STATUS),
    *_group(KNOWN, NO_COOKIES, _COOKIES),
    *(
        _rule(name, words, "RFC 9111 section 5.2.2", POLICY, "the policy decides: IMDS sends no such field")
        for name, words in _DIRECTIVES.items()
    ),
    _rule("transfer_encoding_grammar", "`Transfer-Encoding` is a list of codings", "RFC 9112 section 6.1", OLD),
    _rule("transfer_encoding_http11", "`Transfer-Encoding` goes to HTTP/1.1 only", "RFC 9112 section 6.1", OLD),
    _rule("no_transfer_encoding_1xx_204", "1xx and 204 have no `Transfer-Encoding`", "RFC 9112 section 6.1", PASSED),
    _rule("content_length_1XX_204", "1xx and 204 have no `Content-Length`", SEMANTICS + "8.6", PASSED),
    _rule("code_204_no_additional_content", "204 has no body", SEMANTICS + "15.3.5", BODILESS),
    _rule("code_205_no_content_allowed", "205 has no body", SEMANTICS + "15.3.6", BODILESS),
    _rule("code_304_no_content", "304 has no body", SEMANTICS + "15.4.5", BODILESS),
    _rule(
        "content_length_same_304_200",
        "`Content-Length` of a 304 is that of the 200",
        SEMANTICS + "8.6",
        PASSED,
        "no 304 of the proxy's own; one of IMDS has no `Content-Length`",
    ),
    _rule("content_head_request", "HEAD has no body", SEMANTICS + "9.3.2", HEAD),
    _rule("content_length_same_head_get", "`Content-Length` of HEAD is that of GET", SEMANTICS + "8.6", HEAD),
    _rule("head_get_headers", "HEAD has the fields of GET", SEMANTICS + "9.3.2", HEAD),
    _rule("close_option_in_final_response", "the last answer has `Connection: close`", "RFC 9112 section 9.6", CLOSES),
    _rule(
        "code_413_retry_after",
        "413 has `Retry-After` if it is temporary",
        SEMANTICS + "15.5.14",
        KNOWN,
        "it is not temporary",
    ),
    _rule("send_upgrade_101", "101 has `Upgrade`", SEMANTICS + "7.8", UPGRADE, "protocols are never changed"),
    _rule("code_101_not_allowed_in_http2", "HTTP/2 has no 101", "RFC 9113 section 8.6", UPGRADE, NOT_HTTP_1),
)
