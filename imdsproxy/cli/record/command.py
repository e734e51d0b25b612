"""`imdsproxy record`: ask, take out what is personal, write the file, and list what was replaced."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from imdsproxy.cli.record.asking import Asker
from imdsproxy.cli.record.conversation import RecordError, children, conversation
from imdsproxy.cli.running.client import Place, ask, metadata_places
from imdsproxy.cli.standard_streams import complain, show
from imdsproxy.config import Config
from imdsproxy.emulator.recorded.recording import INSTANCE, Recording, Said, to_toml
from imdsproxy.emulator.recorded.redaction import Redaction
from imdsproxy.errors import NotRunningError, SettingsError
from imdsproxy.protocol.address import Address
from imdsproxy.settings.places import parse_upstream

_UNREAD = 1
_HEADING = (
    "Answers of an IMDS, recorded by `imdsproxy record`. Play them back: imdsproxy emulator --vm FILE",
    "Values in personal fields were replaced, the same value by the same replacement everywhere.",
    "Access tokens and attested documents are not recorded; the emulator makes its own, for these identities:",
)


def record(config: Config, options: Mapping[str, str], sleep: Callable[[float], None] = time.sleep) -> int:
    """Record the IMDS of this VM, and return the exit status.

    Args:
        config: The settings that name the running proxy, and IMDS where none runs.
        options: `out`, and `url`, `keep` and `scheduled-events` where they were given.
        sleep: Waits for a number of seconds.

    Raises:
        SettingsError: There is no `out`, it exists, or `url` cannot be read.
        RecordError: IMDS does not answer as it should.
    """
    out = _path_of(options)
    place = _place(config, options.get("url"))
    complain(f"imdsproxy: asking {place.name}; this takes half a minute")
    asker = Asker(place, sleep)
    recording = asker.hold(conversation(events="scheduled-events" in options))
    keep = tuple(name.strip() for name in options.get("keep", "").split(",") if name.strip())
    redacted, redaction = without_personal(recording, keep)
    _write(out, to_toml([("identities", ["system"])], redacted, _HEADING))
    return 0 if show(_report(out, redacted, redaction, asker.asked)) else _UNREAD


def without_personal(recording: Recording, keep: tuple[str, ...] = ()) -> tuple[Recording, Redaction]:
    """Return the recording without what is personal, and what was replaced; `keep` names fields that stay."""
    redaction = Redaction(keep)
    redaction.learn(
        said.body for said in (*recording.answers.values(), *recording.words.values()) if _is_json(said.body)
    )
    answers = {key: _redacted(redaction, recording, key, said) for key, said in recording.answers.items()}
    # Words that are no JSON could hold anything; the emulator has words of its own for them.
    words = {
        name: replace(said, body=redaction.body(said.body))
        for name, said in recording.words.items()
        if _is_json(said.body)
    }
    return Recording(answers, words), redaction


def _redacted(redaction: Redaction, recording: Recording, key: tuple[str, str, str], said: Said) -> Said:
    path, form, version = key
    # A part of the instance document is redacted under the names that lead to it.
    names = tuple(step for step in path.split("/")[1:] if not step.isdecimal()) if path.startswith(INSTANCE) else ()
    if form == "text":
        inside = children(recording, path, version)
        if inside is None:
            return replace(said, body=redaction.value(names, said.body))
        if {line.strip().rstrip("/") for line in said.body.splitlines()} <= {"", *inside}:
            return said
    # What is no JSON could hold anything.
    return replace(said, body=redaction.body(said.body, names) if _is_json(said.body) else "")


def _is_json(body: str) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _path_of(options: Mapping[str, str]) -> Path:
    if not options.get("out"):
        raise SettingsError("record needs a file to write: imdsproxy record --out vm.toml")
    path = Path(options["out"])
    if path.suffix.lower() != ".toml":
        raise SettingsError(f"--out {path} is a TOML file; name it .toml, so that the emulator reads it as one")
    if not path.parent.is_dir():
        raise SettingsError(f"--out {path} is in a folder that does not exist; make it, or choose another --out")
    if path.exists():
        raise SettingsError(f"--out {path} exists; choose another name, or remove it first")
    return path


def _place(config: Config, url: str | None) -> Place:
    """Return what to ask: the URL, or the running proxy, or IMDS itself where no proxy runs."""
    if url is not None:
        try:
            return _as_place(parse_upstream(url))
        except ValueError:
            raise SettingsError(f"--url {url[:80]} must be http://HOST[:PORT], of IMDS or of a proxy") from None
    try:
        return ask(metadata_places(config), "GET", "/-/healthy").place
    except NotRunningError:
        return _as_place(config.upstream)


def _as_place(address: Address) -> Place:
    return Place(str(address), address.host, address.port, address.unix)


def _write(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:  # noqa: PTH123 - of a descriptor
            file.write(text)
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error.strerror or error}; choose another --out") from None


def _report(out: Path, recording: Recording, redaction: Redaction, asked: int) -> str:
    lines = [f"replaced in {field}: {', '.join(new)}" for field, new in sorted(redaction.replaced.items())]
    for field in redaction.keep:
        kept = field in redaction.kept
        lines.append(f"{'kept as it is' if kept else 'kept nothing, because there is no such field'}: {field}")
    versions = recording.versions("instance")
    lines += [
        "not recorded: access tokens, attested documents",
        f"wrote {out}: {len(recording.answers)} answers in {len(versions)} api-versions, from {asked} requests",
        f"play it back: imdsproxy emulator --vm {out}",
    ]
    return "\n".join(lines) + "\n"
