"""Answering from a recording of a real IMDS, where the machine has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imdsproxy.emulator.messages import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imdsproxy.emulator.messages import Request
    from imdsproxy.emulator.recorded.recording import Said
    from imdsproxy.emulator.vm.model import VirtualMachine


def played(vm: VirtualMachine, request: Request, parameters: Mapping[str, str], *, has_events: bool) -> Answer | None:
    """Return what was recorded for a request.

    Args:
        vm: The machine.
        request: A request that IMDS would answer.
        parameters: Its query.
        has_events: Whether scheduled events were added since, which have a life of their own.

    Returns:
        The answer; None without a recording, or for what none holds.
    """
    recording, path = vm.recording, request.segments[1:]
    # The parameter `extended` has answers of its own, which are not recorded.
    if recording is None or request.method != "GET" or "extended" in parameters:
        return None
    if path[0].lower() == "scheduledevents" and has_events:
        return None
    form, version = parameters.get("format", "").lower(), parameters.get("api-version", "")
    said = recording.answer(path, form, version)
    if said is None and path[0].lower() == "instance" and version not in vm.versions:
        said = recording.words.get("unknown-version" if version else "no-version")
    return None if said is None else _as_answer(said)


def in_words(vm: VirtualMachine, name: str, default: Answer) -> Answer:
    """Return an error as the recorded IMDS said it, and the default without a recording of it."""
    said = vm.recording.words.get(name) if vm.recording is not None else None
    return default if said is None else _as_answer(said)


def _as_answer(said: Said) -> Answer:
    return Answer(said.status, said.body.encode(), said.content_type or None)
