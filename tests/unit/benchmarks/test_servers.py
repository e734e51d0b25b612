"""The servers that the benchmarks compare: how they are found, and which files they write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.figures import (
    NGINX,
)
from benchmarks.machine import programs
from benchmarks.servers import peers


def test_programs_are_found_in_the_sbin_beside_a_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bin", "sbin", "other"):
        (tmp_path / folder).mkdir()
    program = tmp_path / "sbin" / "nginx"
    program.write_text("#!/bin/sh\necho 'nginx version: nginx/9.8.7' >&2\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert programs.find("nginx") == str(program)
    assert programs.version(str(program), "-v") == "9.8.7"
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert programs.find("nginx") is None
    assert programs.version("nginx", "-v") == "of no known version"


@pytest.mark.parametrize("paced", [False, True])
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_peers_files_are_all_in_its_folder(peer: peers.Peer, paced: bool, tmp_path: Path) -> None:
    setup = peers.Setup(tmp_path, 1, 2, 60, paced, 16, 20_000)
    command = peer.command(setup, peer.program)
    written = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
    assert len(written) == 1
    named = re.findall(r"(?<![\w.:/])/[\w./-]+", " ".join([*command, written[0]]))
    assert all(path == "/" or path.startswith(str(tmp_path)) for path in named), named
    assert "60" in written[0]
    assert ("limit_req" in written[0]) is (paced and peer.name == NGINX)
