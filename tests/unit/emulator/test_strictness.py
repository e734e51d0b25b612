from __future__ import annotations

import json

import pytest

from imdsproxy.emulator.answers import answer
from imdsproxy.emulator.emulator import Emulator
from imdsproxy.emulator.machine import Machine
from imdsproxy.emulator.messages import Answer, Request, read_query
from imdsproxy.emulator.strictness import is_resource
from tests.targets import EVENTS, INSTANCE, TOKEN

NOW = 1_700_000_000.0
METADATA = (("metadata", "true"),)
IDENTITY = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
ATTESTED = "/metadata/attested/document?api-version=2020-09-01"


def ask(
    target: str, *, strict: bool = True, method: str = "GET", headers: tuple[tuple[str, str], ...] = METADATA
) -> Answer:
    machine: Machine = Emulator(strict=strict).machine
    path, _, query = target.partition("?")
    return answer(machine, Request(method, path, read_query(query.encode()), headers), NOW)


def test_refusal_of_a_nonce_says_what_one_is() -> None:
    assert b"1 to 32 letters and digits" in ask(f"{ATTESTED}&nonce=12345-7890").body


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"{IDENTITY}vault", 400),
        (f"{IDENTITY}https://vault.azure.net/.default", 400),
        (f"{IDENTITY}https://[", 400),
        (f"{ATTESTED}&nonce=", 400),
        (f"{ATTESTED}&nonce=12345-7890", 400),
        (f"{ATTESTED}&nonce={'1' * 33}", 400),
        (INSTANCE.replace("/instance", "\\instance"), 404),
        (INSTANCE.replace("/instance", "/%69nstance"), 404),
        (INSTANCE.replace("/instance", "/x/../instance"), 404),
        (INSTANCE.replace("/instance", "/./instance"), 404),
        (TOKEN.replace("/identity", "/./identity"), 404),
    ],
)
def test_only_a_strict_imds_refuses(target: str, status: int) -> None:
    assert ask(target).status == status
    assert ask(target, strict=False).status == 200


@pytest.mark.parametrize(
    "target",
    [
        *(INSTANCE, EVENTS, TOKEN, "/metadata/versions", ATTESTED, f"{ATTESTED}&nonce=1234567890"),
        *(INSTANCE.replace("/metadata", "//Metadata"), INSTANCE.replace("?", "/?"), f"{INSTANCE}&unknown=1"),
        f"{IDENTITY}6dae42f8-4368-4678-94ff-3960e28e3630",
        f"{IDENTITY}api://app",
    ],
)
def test_what_clients_of_microsoft_send_is_accepted(target: str) -> None:
    assert ask(target).status == 200


def test_resource_is_refused_in_the_documented_words() -> None:
    document = json.loads(ask(f"{IDENTITY}vault").body)
    assert document["error"] == "invalid_resource"
    assert document["error_description"].startswith(
        "AADSTS50001: The application named vault was not found in the tenant"
    )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("target", "method", "headers", "status"),
    [
        (INSTANCE, "GET", (), 400),
        (INSTANCE, "GET", (("metadata", "false"),), 400),
        (INSTANCE, "GET", (*METADATA, ("x-forwarded-for", "1.2.3.4")), 400),
        (INSTANCE, "POST", METADATA, 405),
        (INSTANCE, "HEAD", METADATA, 405),
        ("/metadata/instance", "GET", METADATA, 400),
        (f"{INSTANCE}&API-VERSION=2021-02-01", "GET", METADATA, 400),
        (f"{IDENTITY}", "GET", METADATA, 400),
    ],
)
def test_what_imds_is_known_to_refuse_is_always_refused(
    *, strict: bool, target: str, method: str, headers: tuple[tuple[str, str], ...], status: int
) -> None:
    assert ask(target, strict=strict, method=method, headers=headers).status == status


@pytest.mark.parametrize("text", ["", "x", "https:", "//host", "https://", "1234"])
def test_text_that_names_no_audience_is_no_resource(text: str) -> None:
    assert not is_resource(text)
