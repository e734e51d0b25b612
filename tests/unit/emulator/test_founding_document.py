"""The emulator gives what the founding document shows: by facts of our own, and by walking the document itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from imdsproxy.emulator import attested, documents
from imdsproxy.emulator.emulator import Emulator
from imdsproxy.emulator.messages import Answer, Request, compact, read_query
from imdsproxy.emulator.vm.loading import load
from imdsproxy.emulator.vm.model import CLOUDS
from tests.founding_document import MISSING, Section, find, sections, targets

BASE = "/metadata/instance"
NONCE = "1234567890"


@dataclass(frozen=True)
class Sample:
    """A request of one section, the machine that it is about, and what the section shows as the answer."""

    section: str
    target: str
    preset: str
    fact: str | None = None
    """The body, or the start of the SHA-256 of a JSON body without spaces; None if the section shows none."""
    sets: tuple[str, ...] = ()
    status: int = 200


SAMPLES = (
    Sample("access-azure-instance-metadata-service", f"{BASE}?api-version=2020-09-01", "windows", "WHOLE"),
    Sample("data-output", f"{BASE}?api-version=2017-08-01&format=text", "windows"),
    Sample("version", BASE, "windows", "VERSIONS", status=400),
    Sample(
        "sample-1-track-a-vm-running-on-azure",
        f"{BASE}/compute/vmId?api-version=2017-08-01&format=text",
        "linux",
        "5c08b38e-4d57-4c23-ac45-aca61037f084",
    ),
    Sample(
        "sample-2-placement-of-different-data-replicas",
        f"{BASE}/compute/platformFaultDomain?api-version=2017-08-01&format=text",
        "linux",
        "0",
    ),
    Sample(
        "sample-3-get-more-information-about-the-vm-during-support-case",
        f"{BASE}/compute?api-version=2020-09-01",
        "windows",
        "COMPUTE",
    ),
    Sample(
        "sample-4-get-the-azure-environment-where-the-vm-is-running",
        f"{BASE}/compute/azEnvironment?api-version=2018-10-01&format=text",
        "linux",
        "AzurePublicCloud",
    ),
    Sample(
        "sample-1-retrieve-network-information",
        f"{BASE}/network?api-version=2017-08-01",
        "linux",
        "NETWORK",
        # The page hides the address.
        ("network.interface.0.ipv4.ipAddress.0.publicIpAddress=X.X.X.X",),
    ),
    Sample(
        "sample-2-retrieve-public-ip-address",
        f"{BASE}/network/interface/0/ipv4/ipAddress/0/publicIpAddress?api-version=2017-08-01&format=text",
        "linux",
    ),
    Sample("storage-metadata", f"{BASE}/compute/storageProfile?api-version=2019-06-01", "windows", "STORAGE"),
    Sample(
        "vm-tags",
        f"{BASE}/compute/tags?api-version=2018-10-01&format=text",
        "linux",
        "Department:IT;Environment:Test;Role:WebRole",
    ),
    Sample("vm-tags", f"{BASE}/compute/tagsList?api-version=2019-06-04", "linux", "TAGS"),
    Sample(
        "sample-1-get-attested-data",
        f"/metadata/attested/document?api-version=2018-10-01&nonce={NONCE}",
        "windows",
        "SIGNED",
    ),
    Sample(
        "sample-2-validate-that-the-vm-is-running-in-azure",
        "/metadata/attested/document?api-version=2020-09-01",
        "windows",
    ),
)
DIGESTS = {
    "WHOLE": "445e6b339729fb88",
    "VERSIONS": "a7be2bed23a18f0f",
    "COMPUTE": "a55949e5c1f4e449",
    "NETWORK": "ce6af27cd5c12e53",
    "STORAGE": "a11dc09bafca9330",
    "TAGS": "c5187161ea26c398",
}
"""The start of the SHA-256 of the page's JSON samples, written without spaces."""
NO_REQUESTS_TO_IMDS = {
    "sample-2-validate-that-the-vm-is-running-in-azure": 1,  # checks the chain of certificates
    "failover-clustering-in-windows-server": 3,  # routes of Windows
    "frequently-asked-questions": 3,  # routes and addresses of Windows
}
"""How many blocks of these sections have no request and no answer of IMDS."""


@pytest.fixture(scope="module")
def page() -> dict[str, Section]:
    path = find()
    if path is None:
        pytest.skip(MISSING)
    return sections(path.read_text(encoding="utf-8"))


def answer_to(sample: Sample) -> Answer:
    emulator = Emulator(machine=load(None, sample.preset, sample.sets))
    path, _, query = sample.target.partition("?")
    request = Request("GET", path, read_query(query.encode()), (("metadata", "true"),))
    visit = emulator.accept(request, sample.target.encode(), ())
    return emulator.answer(visit, request)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]


def signed(body: bytes) -> dict[str, Any]:
    """Return the document inside a signature, which is there as plain bytes."""
    outer = json.loads(body)
    assert outer["encoding"] == "pkcs7"
    der = base64.b64decode(outer["signature"])
    start = re.search(rb'\{"(licenseType|nonce)"', der)
    assert start
    document, _ = json.JSONDecoder().raw_decode(der[start.start() :].decode("latin-1"))
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.section}-{sample.target[-20:]}")
def test_sample_gives_the_documented_answer(sample: Sample) -> None:
    answer = answer_to(sample)
    assert answer.status == sample.status
    if sample.fact in DIGESTS:
        assert digest(answer.body) == DIGESTS[sample.fact]
    elif sample.fact == "SIGNED":
        document = signed(answer.body)
        assert list(document) == ["nonce", "plan", "timeStamp", "vmId"]
        assert document["nonce"] == NONCE
    elif sample.fact is not None:
        assert answer.body.decode() == sample.fact
        assert answer.content_type == "text/plain; charset=utf-8"


def test_every_request_and_every_answer_of_the_page_is_a_sample(page: dict[str, Section]) -> None:
    expected = list(SAMPLES)
    for name, section in page.items():
        beside = 0
        pending: Sample | None = None
        for language, text in section.blocks:
            asked = targets(text) if language == "powershell" else []
            if asked:
                (target,) = asked
                pending = expected.pop(0)
                assert (pending.section, pending.target) == (name, target)
            elif pending is not None and language in ("json", "text"):
                compare(pending, language, text)
                pending = None
            else:
                beside += 1
        assert beside == NO_REQUESTS_TO_IMDS.get(name, 0), f"{name} has a block that no sample covers"
        assert pending is None or pending.fact is None, f"{name} does not show the answer to {pending}"
    assert not expected


def compare(sample: Sample, language: str, shown: str) -> None:
    body = answer_to(sample).body
    if sample.fact == "SIGNED":
        ours, theirs = signed(body), signed(shown.encode())
        assert shape(ours) == shape(theirs)
    elif language == "json":
        assert body == compact(json.loads(shown))
    else:
        assert body.decode() == shown.strip()


def shape(value: Any) -> Any:
    """Return a document with its digits, which differ from run to run, and its texts that may be empty, taken out."""
    if isinstance(value, dict):
        return {key: shape(child) for key, child in value.items() if key not in ("vmId", "plan")}
    return re.sub(r"\d", "0", value)


def test_versions_are_those_of_the_page(page: dict[str, Section]) -> None:
    machine = load(None, "windows")
    assert tuple(page["version"].items) == machine.versions


def test_fields_begin_with_the_documented_version(page: dict[str, Section]) -> None:
    # One name was translated with the page.
    rows = {row[0] if row[0].isascii() else "zone": row[2] for row in page["instance-api"].rows[2:]}
    assert len(rows) == 32
    for name, version in rows.items():
        field = f"compute.{name}"
        whole = field.rpartition(".")[0]
        first = documents.INTRODUCED.get(field, documents.INTRODUCED.get(whole, "2017-04-02"))
        assert first == version, name
    attested_rows = {row[0]: row[2] for row in page["sample-1-get-attested-data"].rows[2:]}
    for name, version in attested_rows.items():
        if not name.startswith("timestamp/"):  # one of them has the version 2018-20-01
            assert attested._INTRODUCED.get(name, documents.ATTESTED_VERSIONS[0]) == version, name


def test_clouds_are_those_of_the_page(page: dict[str, Section]) -> None:
    environments = page["sample-4-get-the-azure-environment-where-the-vm-is-running"].rows[2:]
    certificates = page["sample-2-validate-that-the-vm-is-running-in-azure"].rows[2:]
    assert [row[-1] for row in environments] == [cloud.environment for cloud in CLOUDS.values()]
    assert [row[-1] for row in certificates] == [f"*.{cloud.attested_domain}" for cloud in CLOUDS.values()]


def test_field_is_shown_early_by_the_samples_alone() -> None:
    def profile(preset: str, version: str) -> list[str]:
        target = f"{BASE}/compute/osProfile?api-version={version}"
        return list(json.loads(answer_to(Sample("", target, preset)).body))

    late = "disablePasswordAuthentication"
    assert late not in profile("windows", "2020-07-15")
    assert late in profile("windows", "2020-09-01")
    assert late not in profile("linux", "2020-09-01")
    assert late in profile("linux", "2020-10-01")
