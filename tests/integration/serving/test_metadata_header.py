"""Who must send `Metadata: true`, and where it is added."""

from __future__ import annotations

import pytest

from tests.integration.serving.kit import (
    ATTESTED,
    INFO,
    LOAD_BALANCER,
    NO_HEADER_IDENTITY,
    NO_HEADER_OTHER,
    PLATFORM,
    REPROVISION,
    Start,
)
from tests.kit import METADATA, Arrivals, ProxyProcess, cache_status, get, unused
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

pytestmark = pytest.mark.process


@pytest.mark.parametrize("headers", [{}, {"Metadata": "false"}, {"Metadata": ""}, {"X-Metadata": "true"}])
@pytest.mark.parametrize(
    "target", [TOKEN, "/metadata/identity/oauth2/token", "/METADATA/Identity/oauth2/token/?api-version=1", INFO]
)
def test_credential_without_metadata_true_is_refused_in_imds_words_without_a_permit(
    proxy: ProxyProcess, arrivals: Arrivals, target: str, headers: dict[str, str]
) -> None:
    assert get(proxy.port, TOKEN).status == 200
    before = arrivals()
    answer = get(proxy.port, target, headers)
    assert (answer.status, answer.body) == (400, NO_HEADER_IDENTITY)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert cache_status(answer) == {"detail": "metadata-header"}
    assert arrivals() == before


@pytest.mark.parametrize("word", ["true", "True", "TRUE", " true "])
def test_metadata_header_ignores_case(proxy: ProxyProcess, word: str) -> None:
    assert get(proxy.port, TOKEN, {"METADATA": word}).status == 200


@pytest.mark.parametrize("target", [INSTANCE, VERSIONS, ATTESTED, LOAD_BALANCER, EVENTS, REPROVISION])
def test_metadata_header_is_added_for_other_paths(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    assert get(proxy.port, unused(target), {}).status == 200
    (arrival,) = arrivals()
    assert dict(arrival.headers)[b"metadata"] == b"true"


@pytest.mark.parametrize(("headers", "sent"), [({}, None), (METADATA, b"true")])
def test_other_identity_path_is_forwarded_with_the_clients_header(
    proxy: ProxyProcess, arrivals: Arrivals, headers: dict[str, str], sent: bytes | None
) -> None:
    """MSAL's probe has to see IMDS's own 404."""
    answer = get(proxy.port, PLATFORM, headers)
    assert (answer.status, answer.body) == (404, b'{"error":"Not Found"}')
    (arrival,) = arrivals()
    assert dict(arrival.headers).get(b"metadata") == sent
    assert get(proxy.port, PLATFORM, {"Metadata": "false"}).status == 400, "as IMDS refuses it"


def test_metadata_header_can_be_required_always(start: Start, arrivals: Arrivals) -> None:
    with start(require_metadata_header="always") as process:
        asked = len(arrivals())
        for target in (INSTANCE, VERSIONS, ATTESTED, REPROVISION):
            answer = get(process.port, target, {})
            assert (answer.status, answer.body) == (400, NO_HEADER_OTHER)
        assert get(process.port, TOKEN, {}).body == NO_HEADER_IDENTITY
        assert len(arrivals()) == asked
        assert get(process.port, INSTANCE).status == 200
        assert get(process.port, INSTANCE, {}).status == 400, "an entry does not open the door"


def test_never_requires_no_metadata_header(start: Start, arrivals: Arrivals) -> None:
    with start(require_metadata_header="never") as process:
        asked = len(arrivals())
        assert [get(process.port, target, {}).status for target in (TOKEN, INFO, INSTANCE, PLATFORM)] == [200] * 3 + [
            404
        ]
        assert {dict(arrival.headers)[b"metadata"] for arrival in arrivals()[asked:]} == {b"true"}
