"""What is recorded from an IMDS is played back to the byte. The IMDS here is the emulator, without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imdsproxy.cli.record.command import without_personal
from imdsproxy.cli.record.conversation import Question, RecordError, conversation
from imdsproxy.emulator.answers import answer
from imdsproxy.emulator.documents import INSTANCE_VERSIONS
from imdsproxy.emulator.emulator import Emulator
from imdsproxy.emulator.machine import Machine
from imdsproxy.emulator.messages import Answer, Request, read_query
from imdsproxy.emulator.recorded.recording import Recording, Said, to_toml
from imdsproxy.emulator.recorded.spans import routes
from imdsproxy.emulator.vm.loading import load
from imdsproxy.emulator.vm.model import VirtualMachine, VmError
from imdsproxy.emulator.vm.presets import PRESETS, preset
from tests.size import LONG

NOW = 1_700_000_000.0
Imds = Callable[[Question], Answer]
EVERYTHING = ("compute", "network", "loadbalancer", "tenantId", "Events")
DEEP = INSTANCE_VERSIONS if LONG else ("2017-04-02", "2019-06-04", "2020-09-01", "2025-04-07")
"""The api-versions whose every part is compared."""


def machine_of(vm: VirtualMachine) -> Machine:
    return Emulator(machine=vm).machine


def imds(vm: VirtualMachine) -> Imds:
    machine = machine_of(vm)

    def ask(question: Question) -> Answer:
        path, _, query = question.target.partition("?")
        headers = (("metadata", "true"),) if question.header else ()
        return answer(machine, Request("GET", path, read_query(query.encode()), headers), NOW)

    return ask


def record(ask: Imds, *, events: bool = False) -> tuple[Recording, list[Question]]:
    talk = conversation(events=events)
    asked = [next(talk)]
    while True:
        given = ask(asked[-1])
        try:
            asked.append(talk.send(Said(given.status, given.content_type or "", given.body.decode())))
        except StopIteration as end:
            return end.value, asked


def played(recording: Recording, folder: Path) -> VirtualMachine:
    file = folder / "vm.toml"
    file.write_text(to_toml([("identities", ["system"])], recording, ["A comment"]), encoding="utf-8")
    return load(str(file))


def questions(vm: VirtualMachine) -> Iterator[Question]:
    """Yield every question that a program can ask about the machine."""
    yield Question("versions")
    for path in ("instance", "instance/compute/vmId", "loadbalancer", "identity/info", "nothing"):
        yield Question(path)
        yield Question(path, header=False)
        for version in ("2000-01-01", *INSTANCE_VERSIONS):
            yield Question(path, version=version)
            yield Question(path, "text", version)
    ask = imds(vm)
    for version in sorted({*DEEP} & {*vm.versions}):
        for route, _ in routes(ask(Question("instance", version=version)).body.decode()):
            path = "/".join(("instance", *route))
            for form in ("", "json", "text", "xml"):
                yield Question(path, form, version)
            yield Question(f"{path}/nothing", version=version)
            yield Question(path.upper().replace("INSTANCE", "Instance", 1), "text", version)


def compared(first: Imds, second: Imds, vm: VirtualMachine) -> int:
    count = 0
    for question in questions(vm):
        one, other = first(question), second(question)
        assert (one.status, one.content_type, one.body) == (other.status, other.content_type, other.body), question
        count += 1
    return count


@pytest.mark.parametrize("name", PRESETS if LONG else ["linux", "windows", "classic"])
def test_every_answer_is_played_back_to_the_byte(name: str, tmp_path: Path) -> None:
    vm = preset(name)
    recording, asked = record(imds(vm))
    kept, redaction = without_personal(recording, EVERYTHING)
    assert redaction.replaced == {}
    assert kept == recording
    assert compared(imds(vm), imds(played(kept, tmp_path)), vm) > 500
    assert len(asked) == len(set(asked)) < 150


def test_other_spelling_of_json_and_other_rules_for_text_are_played_back_too(tmp_path: Path) -> None:
    """Play back an IMDS that escapes, indents, lists children without slashes, and counts a lone number as a leaf."""
    versions = ("2018-02-01", "2020-09-01", "2020-10-01")
    plain = imds(replace(preset("windows"), versions=versions))

    def other(question: Question) -> Answer:
        given = plain(question)
        text = given.body.decode()
        if given.status == 200 and question.form == "text":
            return replace(given, body=(text.replace("/", "") + "\n").encode())
        if given.status == 200:
            return replace(given, body=json.dumps(json.loads(text), indent=1).replace("o", "\\u006f").encode())
        return replace(given, body=text.replace("Bad request", "Bad Request").encode())

    recording, asked = record(other)
    again = imds(played(recording, tmp_path))
    newest = [question for question in asked if question.header]
    for question in newest:
        assert again(question).body == other(question).body, question
    deep = [question for question in newest if question.path.count("/") > 3]
    assert {question.form for question in deep} == {"", "text"}
    # The documents of the last two are equal.
    assert {question.version for question in deep} == {versions[0], versions[2]}


@pytest.mark.parametrize("container", ["listing", "json", "prose"])
def test_nothing_personal_is_left_of_an_imds_with_other_rules_for_text(container: str) -> None:
    plain = imds(replace(preset("windows"), versions=("2020-10-01",)))

    def other(question: Question) -> Answer:
        given = plain(question)
        if given.status != 200 or question.form != "text":
            return given
        as_json = plain(replace(question, form="json"))
        if as_json.status != 200:
            return replace(given, body=given.body + b" ")
        if container == "json":
            return replace(given, body=as_json.body)
        return replace(
            given, body=given.body.replace(b"/", b"") if container == "listing" else b"It is of examplevmname"
        )

    recording, _ = record(other)
    redacted, _ = without_personal(recording)
    kept = [said.body for key, said in redacted.answers.items() if key[1] == "text" and said.status == 200]
    assert len(kept) > 30
    everything = to_toml([], redacted, [])
    for secret in (
        "examplevmname",
        "macikgo",
        "02aab8a4",
        "10.144",
        "ssh-rsa 0",
        "0011AAFFBB22",
        "crpteste9vflji9",
        "bash",
    ):
        assert secret not in everything
    assert ("compute\nnetwork" in kept) == (container == "listing")
    assert "westus" in everything


def test_redacted_recording_is_played_back_with_replacements_everywhere(tmp_path: Path) -> None:
    vm = load(None, "linux", ["compute.name=Payroll", "compute.tags=owner:alice", "user-data=secret"])
    recording, _ = record(imds(vm))
    redacted, redaction = without_personal(recording)
    text = to_toml([], redacted, [])
    for secret in (
        "Payroll",
        "alice",
        "c2VjcmV0",
        "macikgo",
        vm.compute["vmId"],
        vm.tenant_id,
        "10.1.0.4",
        "ssh-rsa 0",
    ):
        assert secret.lower() not in text.lower()
    assert redaction.replaced["compute.name"] == ["name-1"]
    again = played(redacted, tmp_path)
    assert (again.name, again.compute["tags"]) == ("name-1", f"owner:{again.compute['tagsList'][0]['value']}")
    assert again.compute["location"] == "westus"
    assert again.versions == vm.versions
    # What was redacted once is recorded and played back to the byte like every other machine.
    second, _ = record(imds(again))
    assert compared(imds(again), imds(played(second, tmp_path)), again) > 500


def test_scheduled_events_are_asked_for_on_request_only(tmp_path: Path) -> None:
    vm = replace(preset("linux"), event_versions=("2019-08-01", "2020-07-01"))
    _, asked = record(imds(vm))
    assert not [question for question in asked if question.path == "scheduledevents"]
    recording, _ = record(imds(vm), events=True)
    again = played(recording, tmp_path)
    assert again.event_versions == ("2019-08-01", "2020-07-01")
    target = Question("scheduledevents", version="2020-07-01")
    assert imds(again)(target).body == imds(vm)(target).body


def test_no_credential_is_asked_for() -> None:
    _, asked = record(imds(preset("linux")), events=True)
    assert not [question for question in asked if "token" in question.path or "attested" in question.path]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, "IMDS has no instance document in any api-version"),
        ({"instance": b"<html>"}, "what answered /metadata/instance is not IMDS"),
        ({"instance": b"[]"}, "what answered /metadata/instance is not IMDS"),
        ({"versions": b"{", "instance": b"["}, "what answered /metadata/instance is not IMDS"),
        ({"versions": b'{"apiVersions":1}'}, "IMDS has no instance document"),
    ],
)
def test_what_is_not_imds_is_reported(answers: dict[str, bytes], words: str) -> None:
    def ask(question: Question) -> Answer:
        body = answers.get(question.path)
        return Answer(404, b"{}") if body is None else Answer(200, body)

    with pytest.raises(RecordError, match=words):
        record(ask)


def test_version_that_the_program_does_not_know_is_recorded(tmp_path: Path) -> None:
    vm = replace(preset("linux"), versions=(*INSTANCE_VERSIONS, "2031-01-01"))
    recording, _ = record(imds(vm))
    assert played(recording, tmp_path).versions[-1] == "2031-01-01"


def test_recording_cannot_be_changed_in_part(tmp_path: Path) -> None:
    recording, _ = record(imds(preset("windows")))
    played(recording, tmp_path)
    file = str(tmp_path / "vm.toml")
    assert load(file, None, ["token-life=60"]).token_life == 60
    with pytest.raises(VmError, match="compute cannot be changed: the machine is a recording"):
        load(file, None, ["compute.location=x"])
    with pytest.raises(VmError, match="a recording is a whole machine; leave out the preset"):
        load(file, "linux")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("answers = 1", "answers cannot be 1; leave a recording as it was written, or record it again"),
        ("answers = [1]", "answers.0.path cannot be None"),
        ("answers = []", "the recording has no instance document"),
        ("answers = []\n[words.hello]\nstatus = 1", "words.hello is not known; known are no-header"),
        (
            '[[answers]]\npath="instance"\nversions=["2021-02-01"]\nstatus=200\ntype="application/json"\nbody="{"',
            "answers.0.body is not JSON, as its type says",
        ),
        (
            '[[answers]]\npath="instance"\nversions=["2021-02-01"]\nstatus=200\ntype="application/json"\nbody="[]"',
            "the recorded instance document is no object",
        ),
    ],
)
def test_damaged_recording_is_reported_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "vm.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(VmError) as raised:
        load(str(file))
    assert words in str(raised.value)


@pytest.mark.parametrize("body", ["it's", 'a"b\\c\x7f\x01\n', "ü\U0001f600", "''", "plain"])
def test_every_text_survives_the_file(tmp_path: Path, body: str) -> None:
    instance = Said(200, "application/json", json.dumps({"compute": {"name": body}}, ensure_ascii=False))
    other = Said(404, "text/plain", body)
    recording = Recording({("instance", "", "2021-02-01"): instance, ("x", "", ""): other}, {"leaf": other})
    assert played(recording, tmp_path).recording == recording
