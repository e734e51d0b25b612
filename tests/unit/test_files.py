"""Which owners and modes of a shared budget's file are trusted."""

from __future__ import annotations

import os
import stat

import pytest

from imdsproxy.files import doubt, exposed


def status(mode: int, user: int = 65532) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, user, 0, 0, 0, 0, 0))


FOLDER = status(stat.S_IFDIR | 0o770, 0)


@pytest.mark.parametrize(
    ("file", "folder", "word"),
    [
        (status(stat.S_IFREG | 0o660), FOLDER, None),
        (status(stat.S_IFREG | 0o660, 0), FOLDER, None),
        (status(stat.S_IFREG | 0o664), FOLDER, None),
        (status(stat.S_IFREG | 0o660, 998), status(stat.S_IFDIR | 0o750, 998), None),
        (status(stat.S_IFREG | 0o660, 998), FOLDER, "it belongs to user 998, and this proxy runs as user 65532"),
        (status(stat.S_IFREG | 0o662), FOLDER, "every user may write to it (mode 0662)"),
        (status(stat.S_IFREG | 0o666, 0), FOLDER, "every user may write to it (mode 0666)"),
        (status(stat.S_IFIFO | 0o660), FOLDER, "it is not a regular file"),
    ],
)
def test_doubt_names_what_is_wrong(file: os.stat_result, folder: os.stat_result, word: str | None) -> None:
    told = doubt(file, folder, 65532)
    assert told is None if word is None else told is not None and told.startswith(word)


@pytest.mark.parametrize(
    ("groups", "folder", "trusted"),
    [
        ({0, 65532}, FOLDER, True),
        ({65532}, FOLDER, False),
        ({0}, status(stat.S_IFDIR | 0o1777, 0), False),
    ],
)
def test_file_of_a_group_is_trusted_if_only_that_group_can_write(
    groups: set[int], folder: os.stat_result, trusted: bool
) -> None:
    shared = status(stat.S_IFREG | 0o660, 998)
    assert (doubt(shared, folder, 8254, groups) is None) is trusted


@pytest.mark.parametrize(("mode", "told"), [(0o770, False), (0o1777, True), (0o777, True), (0o755, False)])
def test_folder_is_exposed_if_every_user_can_write_to_it(mode: int, told: bool) -> None:
    assert exposed(status(stat.S_IFDIR | mode, 0)) is told
