from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imdsproxy.emulator.answers import answer, is_identity
from imdsproxy.emulator.documents import INSTANCE_VERSIONS, at_version
from imdsproxy.emulator.emulator import Emulator
from imdsproxy.emulator.events import EVENT_VERSIONS
from imdsproxy.emulator.identity import SYSTEM_ASSIGNED, USER_ASSIGNED, ManagedIdentity
from imdsproxy.emulator.machine import Machine
from imdsproxy.emulator.messages import Answer, Request, failure, json_answer, read_query, segments_of
from imdsproxy.emulator.samples import sample_instance
from imdsproxy.emulator.vm.loading import load
from imdsproxy.emulator.vm.presets import preset
from tests.targets import EVENTS, INSTANCE, TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_700_000_000.0
METADATA = (("metadata", "true"),)


def ask(
    target: str,
    machine: Machine | None = None,
    *,
    method: str = "GET",
    headers: tuple[tuple[str, str], ...] = METADATA,
    body: bytes = b"",
    now: float = NOW,
) -> Answer:
    path, _, query = target.partition("?")
    request = Request(method, path, read_query(query.encode()), headers, body)
    return answer(machine or Machine(), request, now)


def read(given: Answer) -> Any:
    assert given.content_type == "application/json; charset=utf-8"
    return json.loads(given.body)


NO_HEADER = b'{ "error": "Bad request: . Required metadata header not specified" }'
NO_IDENTITY_HEADER = b'{"error":"invalid_request","error_description":"Required metadata header not specified"}'
NO_VERSION = (
    b'{"error":"Bad request. api-version is invalid or was not specified in the request. '
    b'For more information refer to aka.ms/azureimds",'
    b'"newest-versions":["2025-04-07","2024-07-17","2024-03-15"]}'
)


class TestMetadataHeader:
    @pytest.mark.parametrize("value", ["true", "True", "TRUE", " true "])
    def test_value_is_compared_without_case(self, value: str) -> None:
        assert ask(INSTANCE, headers=(("metadata", value),)).status == 200

    @pytest.mark.parametrize(
        "headers",
        [
            (),
            (("metadata", ""),),
            (("metadata", "false"),),
            (("metadata", "true"), ("metadata", "false")),
            (("x-metadata", "true"),),
        ],
    )
    def test_missing_header_wording_depends_on_the_category(self, headers: tuple[tuple[str, str], ...]) -> None:
        assert ask(INSTANCE, headers=headers).status == 400
        assert ask(INSTANCE, headers=headers).body == NO_HEADER
        assert ask(EVENTS, headers=headers).body == NO_HEADER
        assert ask(TOKEN, headers=headers).status == 400
        assert ask(TOKEN, headers=headers).body == NO_IDENTITY_HEADER

    @pytest.mark.parametrize("name", ["getplatformmetadata", "issuecredential"])
    def test_unsupported_identity_endpoint_is_404_without_the_header(self, name: str) -> None:
        given = ask(f"/metadata/identity/{name}?cred-api-version=2.0", headers=())
        assert (given.status, given.body) == (404, b'{"error":"Not Found"}')

    def test_extra_endpoints_are_answered(self) -> None:
        machine = Machine(extra={"identity/issuecredential": json_answer({"certificate": "none"})})
        target = "/metadata/identity/issuecredential?cred-api-version=2.0"
        assert ask(target, machine, method="POST").status == 200
        assert ask(target, machine, method="POST", headers=()).body == NO_IDENTITY_HEADER
        assert ask(target, machine, method="PUT").headers == (("allow", "GET, POST"),)


class TestCommonRules:
    @pytest.mark.parametrize("target", [INSTANCE, TOKEN, EVENTS, "/metadata/versions", "/elsewhere"])
    @pytest.mark.parametrize("value", ["", "127.0.0.1"])
    def test_x_forwarded_for_is_refused(self, target: str, value: str) -> None:
        assert ask(target, headers=(*METADATA, ("x-forwarded-for", value))).status == 400

    @pytest.mark.parametrize("more", ["&api-version=2018-02-01", "&API-Version=2021-02-01", "&x=1&x=1", "&x&x"])
    def test_repeated_parameter_is_refused(self, more: str) -> None:
        assert ask(INSTANCE + more).status == 400
        assert read(ask(TOKEN + more))["error"] == "invalid_request"

    @pytest.mark.parametrize("query", ["", "?api-version", "?api-version=", "?api-version=2016-01-01", "?x=1"])
    @pytest.mark.parametrize("path", ["/metadata/instance", "/metadata/instance/nothing", "/metadata/loadbalancer"])
    def test_unknown_version_lists_the_newest(self, path: str, query: str) -> None:
        assert (ask(path + query).status, ask(path + query).body) == (400, NO_VERSION)

    @pytest.mark.parametrize(
        ("version", "status"), [("2021-02-01", 404), ("2030-01-01", 404), ("latest", 400), ("", 400)]
    )
    def test_version_of_events_that_the_region_does_not_know_is_404(self, version: str, status: int) -> None:
        assert ask(f"/metadata/scheduledevents?api-version={version}").status == status

    def test_scheduled_events_have_their_own_versions(self) -> None:
        assert all(ask(f"/metadata/scheduledevents?api-version={version}").status == 200 for version in EVENT_VERSIONS)
        newest = read(ask("/metadata/scheduledevents"))["newest-versions"]
        assert newest == ["2024-07-09", "2020-07-01", "2019-08-01"]

    @pytest.mark.parametrize(
        ("path", "first", "last_without"),
        [
            ("/metadata/attested/document", "2018-10-01", "2018-04-02"),
            ("/metadata/identity/info", "2018-02-01", "2017-12-01"),
            ("/metadata/loadbalancer", "2020-10-01", "2020-09-01"),
        ],
    )
    def test_endpoint_is_unknown_before_its_first_version(self, path: str, first: str, last_without: str) -> None:
        assert ask(f"{path}?api-version={first}").status == 200
        assert ask(f"{path}?api-version={last_without}").status == 400

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
    def test_other_method_is_405(self, method: str) -> None:
        given = ask(INSTANCE, method=method)
        assert (given.status, given.headers) == (405, (("allow", "GET"),))

    def test_other_method_on_scheduled_events_is_405(self) -> None:
        assert ask(EVENTS, method="PUT").headers == (("allow", "GET, POST"),)

    @pytest.mark.parametrize(
        "target",
        [
            *("/", "/metadata", "/metadata/", "/metadata/instanceX?api-version=2021-02-01"),
            *("/metadata/versions/1", "/metadata/attested", "/metadata/reprovisiondata", "/elsewhere"),
        ],
    )
    def test_unknown_path_is_404(self, target: str) -> None:
        assert (ask(target).status, ask(target).body) == (404, b'{"error":"Not found"}')

    def test_versions_need_no_api_version(self) -> None:
        given = ask("/metadata/versions")
        assert given.body.startswith(b'{"apiVersions":["2017-03-01","2017-04-02",')
        assert read(given)["apiVersions"] == list(INSTANCE_VERSIONS)


class TestRegionThatLags:
    """Its newest versions are those that the error lists; scheduled events have versions of their own."""

    machine = Emulator(machine=load(None, None, ["newest-version=2021-02-01"])).machine

    @pytest.mark.parametrize(
        "path", ["instance", "instance/compute", "attested/document", "identity/oauth2/token", "loadbalancer"]
    )
    def test_newer_version_gets_the_error_with_the_newest_ones_there(self, path: str) -> None:
        given = ask(f"/metadata/{path}?api-version=2021-03-01", self.machine)
        assert given.status == 400
        assert read(given)["newest-versions"] == ["2021-02-01", "2021-01-01", "2020-12-01"]
        assert read(given)["error"].startswith("Bad request. api-version is invalid or was not specified")

    def test_versions_of_the_region_are_listed_and_answered(self) -> None:
        assert read(ask("/metadata/versions", self.machine))["apiVersions"][-1] == "2021-02-01"
        assert ask(INSTANCE, self.machine).status == 200

    def test_region_of_2020_has_the_words_of_2020_for_a_missing_version(self) -> None:
        machine = Emulator(machine=load(None, None, ["newest-version=2020-10-01"])).machine
        assert read(ask("/metadata/instance", machine))["error"].startswith(
            "Bad request. api-version was not specified"
        )
        unknown = read(ask("/metadata/instance?api-version=2021-01-01", machine))
        assert unknown["error"].startswith("Bad request. api-version is invalid")


class TestClassicMachine:
    machine = Emulator(machine=preset("classic")).machine

    def test_only_the_network_is_known(self) -> None:
        assert list(read(ask(INSTANCE, self.machine))) == ["network"]
        assert ask("/metadata/instance/compute?api-version=2021-02-01", self.machine).status == 404

    def test_no_more_than_the_id_is_signed(self) -> None:
        given = read(ask("/metadata/attested/document?api-version=2020-09-01&nonce=1", self.machine))
        content = base64.b64decode(given["signature"]).partition(b'{"licenseType"')
        signed, _ = json.JSONDecoder().raw_decode(b"".join(content[1:]).decode("latin-1"))
        assert signed["vmId"] == "5c08b38e-4d57-4c23-ac45-aca61037f084"
        assert (signed["licenseType"], signed["subscriptionId"], signed["sku"]) == ("", "", "")

    def test_it_has_no_token(self) -> None:
        assert ask(TOKEN, self.machine).body == b'{"error":"invalid_request","error_description":"Identity not found"}'


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            *("/metadata/instance/compute/", "//metadata//instance/compute", "/Metadata/INSTANCE/Compute"),
            *("/metadata\\instance\\compute", "/metadata/%69nstance%2Fcompute", "/metadata%5cinstance/compute"),
            *("/metadata/./instance/network/../compute", "/../metadata/instance/compute"),
        ],
    )
    def test_path_is_read_permissively(self, path: str) -> None:
        plain = ask("/metadata/instance/compute?api-version=2021-02-01")
        assert plain.status == 200
        assert ask(f"{path}?api-version=2021-02-01") == plain

    def test_segments_of_splits_a_raw_path(self) -> None:
        assert segments_of("/a/../../b%20c//d\\e/") == ("b c", "d", "e")

    def test_is_identity_uses_the_same_segments(self) -> None:
        assert is_identity(segments_of("/metadata/Identity\\oauth2\\token"))
        assert not is_identity(segments_of("/metadata/identityX"))
        assert not is_identity(segments_of("/metadata"))


class TestInstance:
    def test_root_is_the_whole_document(self) -> None:
        assert read(ask(INSTANCE)) == at_version(sample_instance(), "2021-02-01")
        assert ask(INSTANCE).body.startswith(b'{"compute":{"azEnvironment":"AzurePublicCloud","customData":"",')

    @pytest.mark.parametrize(
        ("route", "status", "content_type", "body"),
        [
            ("compute/vmId?format=text", 200, "text", b"5c08b38e-4d57-4c23-ac45-aca61037f084"),
            ("COMPUTE/VMID?FORMAT=TEXT", 200, "text", b"5c08b38e-4d57-4c23-ac45-aca61037f084"),
            ("compute/zone?format=text", 200, "text", b""),
            ("compute/tagsList/1/value?format=text", 200, "text", b"Test"),
            ("network/interface/0/ipv4/ipAddress/0/privateIpAddress?format=text", 200, "text", b"10.1.0.4"),
            ("network/interface/0/ipv4/subnet/0/", 200, "json", b'{"address":"10.1.0.0","prefix":"24"}'),
            ("compute/vmId", 400, "json", None),
            ("compute/vmId?format=json", 400, "json", None),
            ("compute/vmId?format=xml", 400, "json", None),
            ("compute?format=xml", 400, "json", None),
            ("compute/nothing", 404, "json", b'{"error":"Not found"}'),
            ("compute/vmId/deeper?format=text", 404, "json", b'{"error":"Not found"}'),
            ("network/interface/1", 404, "json", b'{"error":"Not found"}'),
            ("network/interface/00", 404, "json", b'{"error":"Not found"}'),
            ("network/interface/-1", 404, "json", b'{"error":"Not found"}'),
            (f"network/interface/{'9' * 5000}", 404, "json", b'{"error":"Not found"}'),
        ],
    )
    def test_route_selects_an_element(self, route: str, status: int, content_type: str, body: bytes | None) -> None:
        path, _, query = route.partition("?")
        given = ask(f"/metadata/instance/{path}?api-version=2021-02-01&{query}")
        assert given.status == status
        assert given.content_type is not None
        assert content_type in given.content_type
        assert body is None or given.body == body

    def test_container_as_text_lists_its_children(self) -> None:
        assert ask(INSTANCE + "&format=text").body == b"compute/\nnetwork/"
        network = "/metadata/instance/network/interface{}?api-version=2021-02-01&format=text"
        assert ask(network.format("")).body == b"0/"
        assert ask(network.format("/0")).body == b"ipv4/\nipv6/\nmacAddress"

    def test_empty_list_is_empty_json(self) -> None:
        machine = Machine()
        machine.instance["network"]["interface"] = []
        target = "/metadata/instance/network/interface?api-version=2021-02-01"
        assert ask(target, machine).body == b"[]"
        assert ask(target + "&format=text", machine).body == b""

    def test_unknown_parameters_are_ignored(self) -> None:
        assert ask(INSTANCE + "&nothing=true") == ask(INSTANCE)

    def test_extended_adds_provisioning_fields(self) -> None:
        newer = INSTANCE.replace("2021-02-01", "2021-08-01")
        told = read(ask(newer + "&extended=true"))
        assert list(told) == ["compute", "network", "extended"]
        assert told["extended"]["compute"]["ppsType"] == "None"
        assert ask(newer + "&extended=false") == ask(newer)
        assert ask(INSTANCE + "&extended=true") == ask(INSTANCE)
        assert ask("/metadata/instance/network?api-version=2021-08-01&extended=true").body.startswith(b'{"interface":')
        assert ask("/metadata/instance/extended?api-version=2021-08-01&extended=true").status == 404


def routes(tree: Any, route: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield route, tree
    if isinstance(tree, dict | list):
        for name, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from routes(child, (*route, str(name)))


@given(st.sampled_from(INSTANCE_VERSIONS), st.data(), st.booleans())
def test_every_element_is_reached_by_its_route(version: str, data: st.DataObject, slash: bool) -> None:
    document = at_version(sample_instance(), version)
    route, element = data.draw(st.sampled_from(list(routes(document))))
    path = "/".join(("/metadata/instance", *route)) + "/" * slash
    as_json = ask(f"{path}?api-version={version}")
    as_text = ask(f"{path}?api-version={version}&format=text")
    if isinstance(element, str):
        assert as_json.status == 400
        assert as_text.body.decode() == element
    else:
        assert read(as_json) == element
        assert len(as_text.body.decode().split()) == len(element)
    assert as_text.content_type == "text/plain; charset=utf-8"


class TestToken:
    def test_token_keys_are_in_order_and_all_strings(self) -> None:
        document = read(ask(TOKEN))
        assert list(document) == [
            *("access_token", "client_id", "expires_in", "expires_on"),
            *("ext_expires_in", "not_before", "resource", "token_type"),
        ]
        assert all(isinstance(value, str) for value in document.values())
        assert b'"not_before":"' in ask(TOKEN).body
        assert document["client_id"] == SYSTEM_ASSIGNED.client_id
        assert document["resource"] == "https://vault.azure.net"

    @pytest.mark.parametrize("query", ["", "&resource=", "&resource"])
    def test_resource_is_required(self, query: str) -> None:
        given = ask(f"/metadata/identity/oauth2/token?api-version=2018-02-01{query}")
        assert (given.status, read(given)) == (
            400,
            {
                "error": "invalid_request",
                "error_description": "Required query variable 'resource' is missing",
            },
        )

    def test_missing_version_is_reported_before_missing_resource(self) -> None:
        assert ask("/metadata/identity/oauth2/token").body == NO_VERSION

    def test_machine_without_identity_is_400(self) -> None:
        given = ask(TOKEN, Machine(identity=ManagedIdentity(())))
        assert given.status == 400
        assert given.body == b'{"error":"invalid_request","error_description":"Identity not found"}'

    def test_bypass_cache_issues_a_new_token(self) -> None:
        machine = Machine()
        first = ask(TOKEN, machine)
        assert ask(TOKEN, machine).body == first.body
        assert ask(TOKEN + "&bypass_cache=false", machine).body == first.body
        second = ask(TOKEN + "&bypass_cache=True", machine)
        assert read(second)["access_token"] != read(first)["access_token"]
        assert ask(TOKEN, machine).body == second.body

    def test_selector_chooses_the_identity(self) -> None:
        wanted = USER_ASSIGNED[1]
        assert read(ask(f"{TOKEN}&object_id={wanted.object_id}"))["client_id"] == wanted.client_id

    def test_info_has_the_tenant(self) -> None:
        assert list(read(ask("/metadata/identity/info?api-version=2018-02-01"))) == ["tenantId"]


class TestScheduledEvents:
    def test_document_is_empty_at_first(self) -> None:
        assert ask(EVENTS).body == b'{"DocumentIncarnation":1,"Events":[]}'

    def test_acknowledgement_starts_the_event(self) -> None:
        machine = Machine()
        event_id = machine.events.add("Reboot", notice=1e9)
        body = json.dumps({"StartRequests": [{"EventId": event_id}]}).encode()
        given = ask(EVENTS, machine, method="POST", body=body)
        assert (given.status, given.body) == (200, b"")
        document = read(ask(EVENTS, machine))
        assert document["DocumentIncarnation"] == 3
        assert document["Events"][0]["EventStatus"] == "Started"

    @pytest.mark.parametrize(
        "body",
        [
            *(b"", b"{", b"\xff", b"[]", b"null", b"{}", b'{"StartRequests":null}', b'{"StartRequests":[1]}'),
            *(b'{"StartRequests":[{}]}', b'{"StartRequests":[{"EventId":1}]}', b"[" * 100_000),
            b'{"StartRequests":[{"EventId":"unknown"}]}',
        ],
    )
    def test_malformed_acknowledgement_is_400(self, body: bytes) -> None:
        machine = Machine()
        assert ask(EVENTS, machine, method="POST", body=body).status == 400
        assert machine.events.incarnation == 1

    def test_first_request_waits(self) -> None:
        machine = Machine()
        machine.events.enable_delay = 90.0
        assert [ask(EVENTS, machine, now=NOW + later).delay for later in (0, 60, 90, 91)] == [90, 30, 0, 0]


class TestLoadBalancer:
    target = "/metadata/loadbalancer?api-version=2020-10-01"

    def test_document_is_the_load_balancer(self) -> None:
        assert list(read(ask(self.target))["loadbalancer"]) == [
            *("publicIpAddresses", "inboundRules", "outboundRules"),
        ]

    def test_missing_load_balancer_is_404(self) -> None:
        given = ask(self.target, Machine(load_balancer=None))
        assert given.status == 404
        assert read(given)["error"].startswith("No load balancer metadata is found. Please check if your VM")


@pytest.mark.parametrize(
    ("status", "identity", "body"),
    [
        (404, False, b'{"error":"Not found"}'),
        (404, True, b'{"error":"Not Found"}'),
        (410, False, b'{"error":"Gone"}'),
        (429, False, b'{"error":"Too many requests"}'),
        (
            *(429, True),
            b'{"error":"invalid_request","error_description":"Temporarily throttled, too many requests"}',
        ),
        (500, True, b'{"error":"invalid_request","error_description":"Internal Server Error"}'),
        (599, False, b'{"error":"Error"}'),
        (304, False, b""),
        (204, True, b""),
    ],
)
def test_failure_wording_depends_on_status_and_category(status: int, identity: bool, body: bytes) -> None:
    assert failure(status, identity).body == body
