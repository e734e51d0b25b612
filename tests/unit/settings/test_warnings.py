"""Settings that are valid and doubtful."""

from __future__ import annotations

import pytest

from imdsproxy.settings.load import load

IMDS_SAYS = "IMDS allows (5 a second); it will answer 429"


@pytest.mark.parametrize(
    ("name", "text", "warning"),
    [
        ("DENY", "/metadata/identiy", "/metadata/identiy matches no known endpoint; did you mean /metadata/identity?"),
        ("ALLOW", "/metadata/versions,/metadata/scheduledevent", "did you mean /metadata/scheduledevents?"),
        ("TTL", "/metadata/instance/comptue=5", "did you mean /metadata/instance/compute?"),
        ("STALE_IF_ERROR", "/metadata/zzz=5", "/metadata/zzz matches no known endpoint; Azure documents no endpoint"),
        ("WARMUP", "/metadata/versoins?x=1", "did you mean /metadata/versions?"),
        ("DENY", "/metadata/identity/oauth2/tokens", "did you mean /metadata/identity/oauth2/token?"),
        (
            "BUDGET_REQUESTS",
            "1000",
            f"IMDSPROXY_BUDGET_REQUESTS=1000 in IMDSPROXY_BUDGET_WINDOW=1 s is more than {IMDS_SAYS}",
        ),
        ("BUDGET_REQUESTS", "6", "it will answer 429"),
        ("IDENTITY_BUDGET_REQUESTS", "21", "IMDS allows (20 a second)"),
        ("TTL", "/metadata/scheduledevents=3600", "hides a scheduled event for up to"),
        ("STALE_IF_ERROR", "/metadata/scheduledevents=60", "scheduled events that may be over"),
        ("NEGATIVE_TTL", "3600", "IMDSPROXY_NEGATIVE_TTL=3600 keeps a 400 or 404 of IMDS"),
        ("REQUIRE_METADATA_HEADER", "never", "disables IMDS's guard against request forgery"),
        ("RETRY_STATUSES", "400,410", "IMDSPROXY_RETRY_STATUSES has 400: "),
        ("CACHE_MAX_BYTES", "1", "IMDSPROXY_CACHE_MAX_BYTES=1 is too small"),
        ("ALLOW", "", "IMDSPROXY_ALLOW is empty"),
    ],
)
def test_doubtful_setting_is_warned_about(name: str, text: str, warning: str) -> None:
    [told] = load({}, {f"IMDSPROXY_{name}": text}).warnings
    assert warning in told
    assert told.startswith(f"IMDSPROXY_{name}")


def test_allowed_path_that_is_denied_is_warned_about() -> None:
    environ = {"IMDSPROXY_ALLOW": "/metadata/identity/info", "IMDSPROXY_DENY": "/metadata/identity"}
    [told] = load({}, environ).warnings
    assert told == "IMDSPROXY_ALLOW: /metadata/identity/info has no effect, because IMDSPROXY_DENY refuses it"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BUDGET_REQUESTS", "5"),
        ("IDENTITY_BUDGET_REQUESTS", "20"),
        ("DENY", "/metadata/identity,/metadata/attested/document,/metadata/reprovisiondata"),
        ("TTL", "/metadata/instance/compute/vmid=5,/metadata/instance/newcategory=5,/metadata/scheduledevents=5"),
        ("WARMUP", "/metadata/instance?api-version=2021-02-01,/metadata/Versions/"),
        ("RETRY_STATUSES", "408,404,410"),
    ],
)
def test_sound_setting_is_not_warned_about(name: str, text: str) -> None:
    assert load({}, {f"IMDSPROXY_{name}": text}).warnings == ()


@pytest.mark.parametrize(
    ("requests", "window", "warned"),
    [
        ("300", "60", True),
        ("5", "60", False),
        ("6", "1", True),
        ("5", "0.5", True),
        ("5", "0.01", True),
        ("1", "0.2", False),
    ],
)
def test_rate_warning_depends_on_what_may_come_in_one_second(requests: str, window: str, warned: bool) -> None:
    found = load({}, {"IMDSPROXY_BUDGET_REQUESTS": requests, "IMDSPROXY_BUDGET_WINDOW": window}).warnings
    assert [IMDS_SAYS in line for line in found] == ([True] if warned else [])


def test_rate_warning_is_for_imds_alone() -> None:
    elsewhere = {"IMDSPROXY_BUDGET_REQUESTS": "1000", "IMDSPROXY_UPSTREAM": "http://127.0.0.1:9"}
    assert load({}, elsewhere).warnings == ()
