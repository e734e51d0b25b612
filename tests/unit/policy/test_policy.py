from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import pytest

from imdsproxy.policy.decisions import Cache, Decision, Forward, Lifetimes, Refuse
from imdsproxy.policy.endpoints import ENDPOINTS, STABLE_LEAVES
from imdsproxy.policy.policy import MetadataRule, Policy
from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.messages import BudgetClass, Refusal, Request, Target
from imdsproxy.protocol.request_parser import read
from imdsproxy.protocol.target import read_target

HOUR = 3600.0
FOR_EVER = float("inf")
GENERAL, IDENTITY = BudgetClass.GENERAL, BudgetClass.IDENTITY
TOKEN = "/metadata/identity/oauth2/token"
EVENTS = "/metadata/scheduledevents"


def ask(
    path: str, method: str = "GET", *, metadata: bool = True, wrong: bool = False, to_imds: bool = False
) -> Request:
    target = read_target(path.encode())
    assert isinstance(target, Target), target
    return Request(method, target, metadata=metadata and not wrong, wrong_metadata=wrong, to_imds=to_imds)


def lifetimes(decision: Decision) -> Lifetimes:
    assert isinstance(decision, Cache), decision
    return decision.lifetimes


# The documented default policy, row by row.
VERSIONS = Lifetimes(HOUR, 0, 24 * HOUR, 5)
STABLE_VALUE = Lifetimes(300, 300, HOUR, 5)
INSTANCE = Lifetimes(60, 60, HOUR, 5)
NETWORK = Lifetimes(30, 30, HOUR, 5)
ATTESTED = Lifetimes(60, 0, 0, 5)
A_TOKEN = Lifetimes(HOUR, FOR_EVER, FOR_EVER, 5, token=True)
INFO = Lifetimes(300, 0, HOUR, 5)
EVENT = Lifetimes(1, 0, 0, 5)

KEPT = [
    ("/metadata/versions", Cache("versions", GENERAL, VERSIONS)),
    *(
        (f"/metadata/instance/compute/{leaf}", Cache("instance", GENERAL, STABLE_VALUE, handed_over=True))
        for leaf in sorted(STABLE_LEAVES)
    ),
    ("/metadata/instance", Cache("instance", GENERAL, INSTANCE, handed_over=True)),
    ("/metadata/instance/", Cache("instance", GENERAL, INSTANCE, handed_over=True)),
    ("/metadata/instance/compute", Cache("instance", GENERAL, INSTANCE, handed_over=True)),
    ("/metadata/instance/compute/tags", Cache("instance", GENERAL, INSTANCE, handed_over=True)),
    ("/metadata/instance/compute/vmIdX", Cache("instance", GENERAL, INSTANCE, handed_over=True)),
    ("/metadata/instance/vmId", Cache("instance", GENERAL, INSTANCE, handed_over=True)),
    ("/metadata/instance/networking", Cache("instance", GENERAL, INSTANCE, handed_over=True)),
    ("/metadata/instance/network", Cache("instance", GENERAL, NETWORK, handed_over=True)),
    ("/metadata/instance/network/interface/0/macAddress", Cache("instance", GENERAL, NETWORK, handed_over=True)),
    ("/metadata/loadbalancer", Cache("loadbalancer", GENERAL, NETWORK, handed_over=True)),
    ("/metadata/attested/document", Cache("attested", GENERAL, ATTESTED)),
    (TOKEN, Cache("token", IDENTITY, A_TOKEN)),
    ("/metadata/identity/info", Cache("identity-info", IDENTITY, INFO)),
    (EVENTS, Cache("scheduledevents", GENERAL, EVENT, slow=True)),
]

NEVER_KEPT = [
    ("/metadata/attested/document?nonce=1234567890", "attested", GENERAL),
    ("/metadata/attested/document?nonce=", "attested", GENERAL),
    ("/metadata/attested/document?nonce", "attested", GENERAL),
    ("/metadata/attested/document?NONCE=1", "attested", GENERAL),
    ("/metadata/attested/document?%6Eonce=1", "attested", GENERAL),
    ("/metadata/identity/getplatformmetadata?cred-api-version=2.0", "identity", IDENTITY),
    ("/metadata/identity/issuecredential?cred-api-version=2.0", "identity", IDENTITY),
    ("/metadata/identity", "identity", IDENTITY),
    ("/metadata/identity/oauth2", "identity", IDENTITY),
    ("/metadata/identity/oauth2/token/more", "identity", IDENTITY),
    ("/metadata/identity/oauth2/tokens", "identity", IDENTITY),
    ("/metadata/identity/info/more", "identity", IDENTITY),
    ("/metadata/reprovisiondata?api-version=2019-06-01", "other", GENERAL),
    ("/metadata/instanceX", "other", GENERAL),
    ("/metadata/identityX", "other", GENERAL),
    ("/metadata/versions/more", "other", GENERAL),
    ("/metadata/unknown", "other", GENERAL),
    ("/metadata", "other", GENERAL),
    ("/metadata/", "other", GENERAL),
]


@pytest.mark.parametrize(("path", "decision"), KEPT)
def test_lifetimes_are_those_of_the_default_policy(path: str, decision: Cache) -> None:
    assert Policy().decide(ask(path)) == decision


@pytest.mark.parametrize(("path", "decision"), KEPT)
def test_case_of_a_path_changes_no_rule(path: str, decision: Cache) -> None:
    assert Policy().decide(ask(path.upper())) == decision


@pytest.mark.parametrize(("path", "endpoint", "budget"), NEVER_KEPT)
def test_unlisted_path_is_forwarded_and_never_cached(path: str, endpoint: str, budget: BudgetClass) -> None:
    assert Policy().decide(ask(path)) == Forward(endpoint, budget, add_metadata=True)


def test_every_decision_has_a_known_endpoint() -> None:
    decided = {decision.endpoint for _, decision in KEPT} | {endpoint for _, endpoint, _ in NEVER_KEPT}
    assert decided | {"none"} == ENDPOINTS


@pytest.mark.parametrize("path", [EVENTS, "/Metadata/ScheduledEvents/", f"{EVENTS}?api-version=2020-07-01"])
def test_scheduled_events_post_is_sent_once_and_drops_the_entry(path: str) -> None:
    sent = Forward("scheduledevents", GENERAL, add_metadata=True, once=True, drops=EVENTS, slow=True)
    assert Policy().decide(ask(path, "POST")) == sent
    assert Policy(require_metadata="never").decide(ask(path, "POST", metadata=False)) == sent
    assert isinstance(Policy().decide(ask(path, "POST", metadata=False)), Refuse)


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "none"])
def test_issuecredential_post_is_sent_once_unchanged(metadata: bool) -> None:
    assert Policy().decide(ask("/metadata/identity/issuecredential", "POST", metadata=metadata)) == Forward(
        "identity", IDENTITY, add_metadata=metadata, once=True
    )


# The documented answers, as far as target, normaliser and policy give them. A number is a refusal's status.
ANSWERS: list[tuple[str, str, dict[str, str], int | str]] = [
    ("GET", "/metadata/instance?api-version=2021-02-01", {}, "cache"),
    ("GET", "/metadata/instance?api-version=2021-02-01", {"metadata": "false"}, 400),
    ("GET", "/metadata/instance?api-version=2021-02-01", {"metadata": ""}, 400),
    ("GET", "/metadata/unknown", {"metadata": "true, true"}, 400),
    ("GET", "/metadata/identity/getplatformmetadata", {"metadata": "false"}, 400),
    ("GET", "/metadata/unknown", {}, "forward"),
    ("POST", EVENTS, {"metadata": "true"}, "forward"),
    ("POST", EVENTS, {}, 400),
    ("POST", EVENTS, {"metadata": "false"}, 400),
    ("POST", EVENTS, {"metadata": "true", "origin": "http://a.example"}, 403),
    ("GET", "/metadata/instance", {"origin": "null"}, 403),
    ("GET", "/metadata/instance", {"sec-fetch-site": "cross-site"}, 403),
    ("GET", "/metadata/instance", {"sec-fetch-site": "same-origin"}, 403),
    ("GET", "/metadata/instance", {"sec-fetch-site": "none"}, "cache"),
    ("OPTIONS", EVENTS, {"origin": "http://a.example"}, 403),
    ("GET", "/metadata/instance", {"host": "169.254.169.254"}, 400),
    ("GET", "/metadata/instance", {"host": "169.254.169.254:80"}, 400),
    ("GET", "/metadata/instance", {"host": "[::ffff:169.254.169.254]"}, 400),
    ("GET", "/metadata/instance", {"host": "169.254.169.254", "metadata": "true"}, "cache"),
    ("GET", "/metadata/unknown", {"host": "169.254.169.254"}, 400),
    ("GET", "/metadata/identity/getplatformmetadata", {"host": "169.254.169.254"}, "forward without"),
    ("GET", "/elsewhere", {"host": "169.254.169.254"}, 404),
    ("GET", "//metadata/instance", {}, "cache"),
    ("GET", "//metadata/identity/oauth2/token", {}, 400),
    ("GET", "//metadata/identity/oauth2/token", {"metadata": "true"}, "cache"),
    ("GET", "//metadata/denied", {}, 403),
    ("POST", "/metadata/identity/issuecredential", {}, "forward without"),
    ("POST", "/metadata/identity/issuecredential", {"metadata": "true"}, "forward"),
    ("GET", TOKEN, {"metadata": "true"}, "cache"),
    ("GET", TOKEN, {"metadata": "True"}, "cache"),
    ("GET", TOKEN, {}, 400),
    ("GET", TOKEN, {"metadata": ""}, 400),
    ("GET", TOKEN, {"metadata": "false"}, 400),
    ("GET", TOKEN, {"metadata": "true, true"}, 400),
    ("GET", TOKEN + "/", {}, 400),
    ("GET", "/METADATA/Identity/oauth2/token", {}, 400),
    ("GET", "/METADATA/Identity/oauth2/token", {"metadata": "true"}, "cache"),
    ("GET", "/metadata/%69dentity/oauth2/token", {}, 400),
    ("GET", "/metadata/identity/info", {}, 400),
    ("GET", "/metadata/identity/getplatformmetadata", {}, "forward without"),
    ("GET", "/metadata/identity", {}, "forward without"),
    ("GET", "/metadata/identity/oauth2/token/more", {}, "forward without"),
    ("GET", "/metadata/instance", {"x-forwarded-for": "10.0.0.1"}, 400),
    ("GET", "/metadata/instance", {"x-forwarded-for": ""}, 400),
    ("GET", "/metadata/instance?a=1&A=2", {}, 400),
    ("GET", "/metadata/identity\\oauth2\\token", {"metadata": "true"}, 400),
    ("GET", "/metadata//identity/oauth2/token", {"metadata": "true"}, 400),
    ("GET", "/metadata/instance/../identity/oauth2/token", {"metadata": "true"}, 400),
    ("GET", "/metadata/instance", {"host": "attacker.example"}, 403),
    ("GET", "/metadata/denied", {}, 403),
    ("POST", EVENTS + "?api-version=1", {"host": "attacker.example"}, 403),
    ("GET", "http://attacker.example/metadata/instance", {}, 403),
    ("GET", "http://169.254.169.254/metadata/instance", {}, 400),
    ("GET", "http://169.254.169.254/metadata/instance", {"metadata": "true"}, "cache"),
    ("GET", "/", {}, 404),
    ("GET", "/metadata-attacker", {}, 404),
    ("GET", "/metadataX/instance", {}, 404),
    ("GET", "/latest/meta-data", {}, 404),
    ("GET", "/favicon.ico", {}, 404),
    ("HEAD", "/metadata/instance", {}, 405),
    ("PUT", "/metadata/instance", {}, 405),
    ("POST", "/metadata/instance", {}, 405),
    ("CONNECT", "169.254.169.254:80", {}, 405),
    ("GET", "/metadata/instance", {"imdsproxy-via": "0123456789abcdef"}, 508),
]


@pytest.mark.parametrize(("method", "target", "fields", "answer"), ANSWERS)
def test_decision_is_that_of_the_contract(method: str, target: str, fields: dict[str, str], answer: int | str) -> None:
    headers = {"host": "127.0.0.1:8254", **fields}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    request = read(method, target.encode(), raw, AcceptedHosts(instance="0123456789abcdef"))
    decision = Refuse(request) if isinstance(request, Refusal) else Policy(deny=("/metadata/denied",)).decide(request)
    match decision:
        case Refuse(refusal):
            assert refusal.status == answer
            assert "error" in json.loads(refusal.response().body)
        case Forward():
            assert answer == ("forward" if decision.add_metadata else "forward without")
        case Cache():
            assert answer == "cache"


IDENTITY_WORDS = b'{"error":"invalid_request","error_description":"Required metadata header not specified"}'
OTHER_WORDS = b'{ "error": "Bad request: . Required metadata header not specified" }'


@pytest.mark.parametrize(
    ("rule", "path", "body"),
    [
        ("credentials", TOKEN, IDENTITY_WORDS),
        ("credentials", "/metadata/identity/info", IDENTITY_WORDS),
        ("always", TOKEN, IDENTITY_WORDS),
        ("always", "/metadata/instance", OTHER_WORDS),
        ("always", "/metadata/versions", OTHER_WORDS),
        ("always", "/metadata/unknown", OTHER_WORDS),
        ("always", EVENTS, OTHER_WORDS),
    ],
)
def test_missing_metadata_header_is_refused_in_imds_own_words(rule: MetadataRule, path: str, body: bytes) -> None:
    decision = Policy(require_metadata=rule).decide(ask(path, metadata=False))
    assert isinstance(decision, Refuse)
    assert (decision.refusal.status, decision.refusal.reason) == (400, "metadata-header")
    assert decision.refusal.response().body == body


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TOKEN, IDENTITY_WORDS),
        ("/metadata/identity/getplatformmetadata", IDENTITY_WORDS),
        ("/metadata/instance", OTHER_WORDS),
        ("/metadata/unknown", OTHER_WORDS),
        (EVENTS, OTHER_WORDS),
    ],
)
@pytest.mark.parametrize("rule", ["credentials", "always", "never"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_wrong_metadata_header_is_refused_under_every_rule(
    method: str, rule: MetadataRule, path: str, body: bytes
) -> None:
    decision = Policy(require_metadata=rule).decide(ask(path, method, wrong=True))
    assert isinstance(decision, Refuse)
    assert (decision.refusal.status, decision.refusal.reason) == (400, "metadata-header")
    assert decision.refusal.response().body == body


@pytest.mark.parametrize(
    ("method", "to_imds", "body"),
    [("POST", False, OTHER_WORDS), ("GET", True, OTHER_WORDS), ("POST", True, OTHER_WORDS)],
)
def test_metadata_header_is_required_for_posts_and_requests_to_imds(method: str, to_imds: bool, body: bytes) -> None:
    request = ask(EVENTS, method, metadata=False, to_imds=to_imds)
    decision = Policy().decide(request)
    assert isinstance(decision, Refuse)
    assert decision.refusal.response().body == body
    assert not isinstance(Policy(require_metadata="never").decide(request), Refuse)


@pytest.mark.parametrize("path", [path for path, *_ in [*KEPT, *NEVER_KEPT]])
@pytest.mark.parametrize("rule", ["credentials", "always", "never"])
def test_metadata_true_is_decided_alike_under_every_rule(rule: MetadataRule, path: str) -> None:
    assert Policy(require_metadata=rule).decide(ask(path)) == Policy().decide(ask(path))


@pytest.mark.parametrize("path", [path for path, *_ in [*KEPT, *NEVER_KEPT]])
def test_never_adds_the_header_everywhere(path: str) -> None:
    policy = Policy(require_metadata="never")
    assert policy.decide(ask(path, metadata=False)) == policy.decide(ask(path))


def test_always_refuses_a_post_without_the_header() -> None:
    assert isinstance(Policy(require_metadata="always").decide(ask(EVENTS, "POST", metadata=False)), Refuse)


@pytest.mark.parametrize(
    ("allow", "deny", "path", "status"),
    [
        (("/metadata",), (), "/metadata/instance", None),
        (("/metadata",), (), "/metadata", None),
        (("/metadata/instance",), (), "/metadata/instance/compute", None),
        (("/metadata/instance",), (), "/metadata/instance", None),
        (("/metadata/instance",), (), "/metadata", 403),
        (("/metadata/instance",), (), "/metadata/instanceX", 403),
        (("/metadata/instance",), (), TOKEN, 403),
        (("/Metadata/INSTANCE/",), (), "/metadata/Instance", None),
        (("/metadata/instance", "/metadata/versions"), (), "/metadata/versions", None),
        ((), (), "/metadata/instance", 403),
        (("/",), (), "/metadata/instance", None),
        (("/",), (), "/elsewhere", 404),
        (("/elsewhere",), (), "/elsewhere", 404),
        (("/metadata",), ("/metadata/identity",), TOKEN, 403),
        (("/metadata",), ("/metadata/identity",), "/METADATA/Identity/OAUTH2/token", 403),
        (("/metadata",), ("/Metadata/Identity/",), TOKEN, 403),
        (("/metadata",), ("/metadata/identity",), "/metadata/%69dentity/info", 403),
        (("/metadata",), ("/metadata/identity",), "/metadata/identityX", None),
        (("/metadata",), ("/metadata/ident",), TOKEN, None),
        ((TOKEN,), ("/metadata/identity",), TOKEN, 403),
        (("/metadata",), ("/metadata",), "/metadata/instance", 403),
        (("/metadata",), ("/",), "/metadata/instance", 403),
    ],
)
def test_allow_and_deny_are_prefixes_by_segment_and_deny_wins(
    allow: tuple[str, ...], deny: tuple[str, ...], path: str, status: int | None
) -> None:
    decision = Policy(allow=allow, deny=deny).decide(ask(path))
    assert (decision.refusal.status if isinstance(decision, Refuse) else None) == status


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_denied_path_is_denied_before_its_header_is_checked(method: str) -> None:
    decision = Policy(deny=("/metadata/identity", EVENTS)).decide(ask(EVENTS, method, metadata=False))
    assert isinstance(decision, Refuse)
    assert (decision.refusal.status, decision.refusal.reason) == (403, "denied")


@pytest.mark.parametrize(
    ("ttl", "path", "expected"),
    [
        ({"/metadata/instance": 120}, "/metadata/instance", replace(INSTANCE, fresh=120, revalidate=120)),
        ({"/metadata/instance": 120}, "/metadata/instance/compute/vmId", replace(INSTANCE, fresh=120, revalidate=120)),
        ({"/metadata/instance": 120}, "/metadata/instance/network", replace(INSTANCE, fresh=120, revalidate=120)),
        (
            {"/metadata/instance": 120, "/metadata/instance/network": 7},
            "/metadata/instance/network/interface",
            replace(INSTANCE, fresh=7, revalidate=7),
        ),
        ({"/metadata/instance/network": 7}, "/metadata/instance", INSTANCE),
        ({"/metadata/inst": 7}, "/metadata/instance", INSTANCE),
        ({"/metadata": 7}, "/metadata/instance", replace(INSTANCE, fresh=7, revalidate=7)),
        ({"/metadata": 7}, "/metadata/versions", replace(VERSIONS, fresh=7)),
        ({"/metadata": 7}, "/metadata/identity/info", replace(INFO, fresh=7)),
        ({"/metadata": 7}, "/metadata/attested/document", replace(ATTESTED, fresh=7)),
        ({"/metadata": 7}, TOKEN, replace(A_TOKEN, fresh=7, revalidate=7)),
        ({TOKEN: 90_000}, TOKEN, replace(A_TOKEN, revalidate=90_000)),
        ({"/metadata": 7}, EVENTS, EVENT),
        ({EVENTS: 7}, EVENTS, replace(EVENT, fresh=7)),
        ({"/metadata/reprovisiondata": 7}, "/metadata/reprovisiondata", Lifetimes(7, 0, 0, 5)),
        ({"/metadata/reprovisiondata": 7}, "/metadata/reprovisiondata/x", Lifetimes(7, 0, 0, 5)),
    ],
)
def test_ttl_overrides_a_numeric_default_by_longest_prefix(
    ttl: dict[str, float], path: str, expected: Lifetimes
) -> None:
    assert lifetimes(Policy(ttl=ttl).decide(ask(path))) == expected


@pytest.mark.parametrize(
    ("ttl", "path"),
    [
        ({"/metadata/instance": 0}, "/metadata/instance"),
        ({"/metadata": 0}, TOKEN),
        ({EVENTS: 0}, EVENTS),
        ({"/metadata/attested": 60}, "/metadata/attested/document?nonce=1"),
        ({"/metadata/attested/document": 60}, "/metadata/attested/document?nonce=1"),
        ({"/metadata/identity": 60}, "/metadata/identity/getplatformmetadata"),
        ({"/metadata/identity/getplatformmetadata": 60}, "/metadata/identity/getplatformmetadata"),
        ({"/metadata/identity/oauth2/token": 60}, "/metadata/identity/oauth2/token/more"),
        ({"/metadata/instance": 60}, "/metadata/reprovisiondata"),
        ({"/metadata/reprovisiondata": 60}, "/metadata/reprovisiondataX"),
    ],
)
def test_ttl_zero_or_private_answer_is_not_stored(ttl: dict[str, float], path: str) -> None:
    assert isinstance(Policy(ttl=ttl).decide(ask(path)), Forward)


def test_uncached_scheduled_events_are_still_slow() -> None:
    assert Policy(ttl={EVENTS: 0}).decide(ask(EVENTS)) == Forward(
        "scheduledevents", GENERAL, add_metadata=True, slow=True
    )


@pytest.mark.parametrize(
    ("stale", "path", "seconds"),
    [
        ({"/metadata/instance": 7200}, "/metadata/instance/compute/vmId", 7200),
        ({"/metadata/instance": 7200, "/metadata/instance/network": 0}, "/metadata/instance/network", 0),
        ({"/metadata": 9}, "/metadata/versions", 9),
        ({"/metadata": 9}, "/metadata/identity/info", 9),
        ({"/metadata": 9}, TOKEN, 9),
        ({"/metadata": 9}, "/metadata/attested/document", 0),
        ({"/metadata": 9}, EVENTS, 0),
        ({"/metadata/attested": 9}, "/metadata/attested/document", 9),
        ({EVENTS: 9}, EVENTS, 9),
    ],
)
def test_stale_bound_overrides_never_only_by_name(stale: dict[str, float], path: str, seconds: float) -> None:
    assert lifetimes(Policy(stale_if_error=stale).decide(ask(path))).stale_if_error == seconds


@pytest.mark.parametrize("path", [path for path, _ in KEPT])
@pytest.mark.parametrize("seconds", [0, 5, 60])
def test_negative_ttl_follows_the_setting(path: str, seconds: float) -> None:
    assert lifetimes(Policy(negative_ttl=seconds).decide(ask(path))).negative == seconds


@pytest.mark.no_cover
def test_flood_of_long_targets_is_remembered_within_bounds() -> None:
    policy = Policy(memory=200_000)
    policy.decide(ask("/metadata/instance"))
    tracemalloc.start()
    try:
        for number in range(60):
            policy.decide(ask(f"/metadata/instance?a={number}" + "a" * 60_000))
        for number in range(500):
            policy.decide(ask(f"/metadata/instance?{'&'.join(f'{name:x}' for name in range(250))}={number}"))
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 500_000
