"""What to ask an IMDS so that the emulator can answer as it does. Each question follows from the answers before.

Access tokens and attested documents are not asked for, because they are credentials. Scheduled events are asked for
only on request, because the first question makes the restarts that a user orders wait for an approval.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass

from imdsproxy.emulator.documents import IDENTITY_VERSIONS, INSTANCE_VERSIONS, LOAD_BALANCER_VERSIONS
from imdsproxy.emulator.events import EVENT_VERSIONS
from imdsproxy.emulator.recorded.recording import INSTANCE, Recording, Said
from imdsproxy.emulator.recorded.spans import cut, members, routes
from imdsproxy.errors import SettingsError

UNKNOWN_VERSION = "2000-01-01"
_OK = 200
_SAMPLED_LEAVES = 3


class RecordError(SettingsError):
    """IMDS did not say what a recording needs; the text is one line with the remedy."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request: the path below `/metadata/`, the format and the api-version, both empty if not named."""

    path: str
    form: str = ""
    version: str = ""
    header: bool = True
    """Whether it has `Metadata: true`."""

    @property
    def target(self) -> str:
        """The path and the query."""
        pairs = (("api-version", self.version), ("format", self.form))
        query = "&".join(f"{name}={value}" for name, value in pairs if value)
        return f"/metadata/{self.path}" + f"?{query}" * bool(query)


Conversation = Generator[Question, Said, Recording]
_Questions = Generator[Question, Said, None]


def conversation(*, events: bool = False) -> Conversation:
    """Ask for everything, and return the recording.

    Args:
        events: Whether to ask for scheduled events as well.

    Raises:
        RecordError: There is no instance document in any api-version, or it is not JSON.
    """
    answers: dict[tuple[str, str, str], Said] = {}
    words: dict[str, Said] = {}
    listed = yield from _versions(answers)
    known = tuple(sorted({*INSTANCE_VERSIONS, *listed}))
    yield from _all_versions(answers, INSTANCE, tuple(reversed(known)))
    offered = Recording(answers).versions(INSTANCE)
    if not offered:
        raise RecordError(
            "IMDS has no instance document in any api-version; run `imdsproxy check` on the VM to see why"
        )
    yield from _words(words, answers, offered[-1])
    recording = Recording(answers, words)
    if (yield from _parts(answers, recording, offered[-1], thorough=False)):
        for version in _distinct(answers, offered):
            yield from _parts(answers, recording, version, thorough=True)
    yield from _all_versions(answers, "loadbalancer", LOAD_BALANCER_VERSIONS, every_status=True)
    yield from _all_versions(answers, "identity/info", (IDENTITY_VERSIONS[0], offered[-1]))
    if events:
        yield from _all_versions(answers, "scheduledevents", EVENT_VERSIONS, every_status=True)
    return recording


def _versions(answers: dict[tuple[str, str, str], Said]) -> Generator[Question, Said, tuple[str, ...]]:
    said = yield Question("versions")
    if said.status != _OK:
        return ()
    try:
        listed = json.loads(said.body)["apiVersions"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    answers["versions", "", ""] = said
    return tuple(version for version in listed if isinstance(version, str)) if isinstance(listed, list) else ()


def _all_versions(
    answers: dict[tuple[str, str, str], Said], path: str, versions: tuple[str, ...], *, every_status: bool = False
) -> _Questions:
    for version in versions:
        said = yield Question(path, version=version)
        if said.status == _OK:
            _check_json(path, said)
        if said.status == _OK or every_status:
            answers[path, "", version] = said


def _check_json(path: str, said: Said) -> None:
    try:
        sound = isinstance(json.loads(said.body), dict)
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise RecordError(
            f"what answered /metadata/{path} is not IMDS: its answer is no JSON object; name IMDS by --url"
        )


def _words(words: dict[str, Said], answers: dict[tuple[str, str, str], Said], newest: str) -> _Questions:
    """Ask for what IMDS refuses, and keep its words."""
    leaf = next(
        ("/".join(route) for route, part in routes(answers[INSTANCE, "", newest].body) if part[0] not in "{["), ""
    )
    questions = {
        "no-version": Question(INSTANCE),
        "unknown-version": Question(INSTANCE, version=UNKNOWN_VERSION),
        "not-found": Question(f"{INSTANCE}/nothing", version=newest),
        "format": Question(INSTANCE, "xml", newest),
        "leaf": Question(f"{INSTANCE}/{leaf}", version=newest),
        # A proxy adds the header; then this is answered, and the words are those of the emulator.
        "no-header": Question(INSTANCE, version=newest, header=False),
    }
    for name, question in questions.items():
        said = yield question
        if 400 <= said.status < 500:
            words[name] = said


def _parts(
    answers: dict[tuple[str, str, str], Said], recording: Recording, version: str, *, thorough: bool
) -> Generator[Question, Said, bool]:
    """Ask for parts of one document, and keep each that does not follow from the whole.

    Args:
        answers: Where they are kept.
        recording: The recording so far, from which they may follow.
        version: The api-version.
        thorough: Whether to ask for all parts in both formats, in place of every container as text and some others.

    Returns:
        Whether one did not follow.
    """
    found = routes(answers[INSTANCE, "", version].body)
    leaves = [route for route, part in found if part[0] not in "{["]
    containers = [route for route, part in found if part[0] in "{["]
    empty = [route for route, part in found if part == '""'][:1]
    chosen = leaves if thorough else [*leaves[:_SAMPLED_LEAVES], *empty]
    questions = [(route, "text") for route in dict.fromkeys((*containers, *chosen))]
    questions += [(route, "") for route in (containers[1:] if thorough else containers[1 : _SAMPLED_LEAVES + 1])]
    differs = False
    for route, form in questions:
        path = "/".join((INSTANCE, *route))
        said = yield Question(path, form, version)
        expected = recording.answer(tuple(path.split("/")), form, version)
        if said != expected:
            answers[path.lower(), form, version] = said
            differs = True
    return differs


def _distinct(answers: dict[tuple[str, str, str], Said], offered: tuple[str, ...]) -> list[str]:
    """Return one api-version for each instance document that differs from the others."""
    return sorted({answers[INSTANCE, "", version].body: version for version in offered}.values())


def children(recording: Recording, path: str, version: str) -> list[str] | None:
    """Return the names of what is in a container of the instance document; None for a leaf or an unknown element."""
    whole = recording.answers.get((INSTANCE, "", version))
    part = cut(whole.body, tuple(path.split("/")[1:])) if whole is not None else None
    return [name for name, _, _ in members(part, 0)] if part is not None and part[0] in "{[" else None
