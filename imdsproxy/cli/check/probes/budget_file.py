"""The budget file as it is now. It is only read; no proxy notices."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from imdsproxy import files
from imdsproxy.budget import shared_record as records
from imdsproxy.cli.check.facts import BudgetFile, Process
from imdsproxy.clock import Clock, boot_id, is_machine_wide

assert sys.platform == "linux"  # noqa: S101  # the setting is refused elsewhere; this tells the type checker

from imdsproxy.budget.file_presence import is_marked_by_another  # noqa: E402  # behind the line above
from imdsproxy.budget.shared_file import PLACES  # noqa: E402  # as well


def look_at_budget_file(path: str, clock: Clock, processes: tuple[Process, ...]) -> BudgetFile:
    """Return the state of a budget file.

    Args:
        path: Its path.
        clock: The machine's clock, which the file's times are of.
        processes: Who has it open.
    """
    if not is_machine_wide():
        words = "this container has a clock of its own (time_namespaces(7))"
        return BudgetFile(path, problem="clock", words=words)
    folder = Path(path).parent
    if not folder.is_dir():
        return BudgetFile(path, problem="folder", words="its folder does not exist")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        if not os.access(folder, os.W_OK | os.X_OK):
            return BudgetFile(path, problem="folder", words="this user may not write to its folder")
        return BudgetFile(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return BudgetFile(path, True, "distrusted", "it is a symbolic link; name the file itself")  # noqa: FBT003
        return BudgetFile(path, problem="denied", words=error.strerror or str(error))
    try:
        return _judge(path, descriptor, folder.stat(), clock, processes)
    finally:
        os.close(descriptor)


def _judge(
    path: str, descriptor: int, folder: os.stat_result, clock: Clock, processes: tuple[Process, ...]
) -> BudgetFile:
    why = files.doubt(os.fstat(descriptor), folder, os.geteuid(), {os.getegid(), *os.getgroups()})
    if why is not None:
        return BudgetFile(path, exists=True, problem="distrusted", words=why, processes=processes)
    content = os.pread(descriptor, records.SIZE + 1, 0)
    if records.foreign(content):
        return BudgetFile(path, exists=True, problem="foreign", words="it is not a budget", processes=processes)
    boot, now = boot_id(), clock.monotonic()
    try:
        header = records.read_header(content, boot, now)
    except records.UnknownVersionError as error:
        words = f"it is of version {error}, and this imdsproxy writes version {records.VERSION}"
        return BudgetFile(path, exists=True, problem="version", words=words, processes=processes)
    settings = _settings(descriptor, content, now) if header is not None and header.boot == boot else ()
    return BudgetFile(
        path,
        exists=True,
        damaged=header is None,
        exposed=files.exposed(folder),
        settings=settings,
        processes=processes,
    )


def _settings(descriptor: int, content: bytes, now: float) -> tuple[tuple[int, float], ...]:
    """Return the different settings of the proxies that run, for the general budget."""
    section = records.read(content, 0, now)
    if section is None:
        return ()
    told = enumerate(section.settings)
    return tuple(
        setting for place, setting in told if setting is not None and is_marked_by_another(descriptor, PLACES + place)
    )
