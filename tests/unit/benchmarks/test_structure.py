"""The folders of the benchmarks, and their flags."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from benchmarks import flags
from tests.kit import ROOT


def test_flags_refuse_what_cannot_be_written(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    assert flags.file(str(taken)) == taken
    assert flags.folder(str(tmp_path / "new")).is_dir()
    for read, text in [(flags.file, tmp_path), (flags.file, tmp_path / "none" / "x"), (flags.folder, taken / "x")]:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(str(text)))):
            read(str(text))


FOLDERS = ("machine", "loads", "servers", "measures", "report")
SHARED = {"effort", "figures", "flags", "samples", "targets"}
"""The modules that stand beside the folders. They import no folder, so every folder may import them."""
MAY_IMPORT = {
    "": SHARED,
    **{folder: {*SHARED, *FOLDERS[: number + 1]} for number, folder in enumerate(FOLDERS)},
    "scaling": {*SHARED, "scaling"},
    "soak": {*SHARED, *FOLDERS[:2], "soak"},
}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.name)
def test_folder_imports_only_folders_above_it(path: Path) -> None:
    """As the table of `benchmarks/README.md` says. The command of the benchmarks imports all of them."""
    text = path.read_text(encoding="utf-8")
    folder = path.parent.name if path.parent.parent.name == "benchmarks" else ""
    named = {*re.findall(r"^from benchmarks\.(\w+)", text, re.MULTILINE)}
    for names in re.findall(r"^from benchmarks import ([\w, ]+)", text, re.MULTILINE):
        named.update(names.split(", "))
    if folder or path.stem in SHARED:
        assert named <= MAY_IMPORT[folder]
