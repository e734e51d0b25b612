"""Workers of one server: how they are recognised, which file they share, when the second is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from imdsproxy.budget import workers
from imdsproxy.budget.workers import NoPlaceError, hold_alone, is_worker, shared_path
from imdsproxy.protocol.address import IMDS, Address
from tests.kit import ROOT, environment

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes of folders are POSIX")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that stands in for the machine's shared memory; there is no other place."""
    monkeypatch.setattr(workers, "_SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_standalone_process_is_not_a_worker() -> None:
    assert not is_worker()


def test_child_of_a_process_manager_is_a_worker(tmp_path: Path) -> None:
    program = (
        "import multiprocessing, sys\n"
        "from imdsproxy.budget.workers import is_worker\n"
        "def child(): sys.exit(0 if is_worker() else 1)\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=child)\n"
        "    process.start()\n"
        "    process.join(30)\n"
        "    sys.exit(process.exitcode or is_worker())\n"
    )
    script = tmp_path / "manager.py"  # a spawned child imports it again
    script.write_text(program, encoding="utf-8")
    assert run(str(script)) == 0


def test_process_started_by_gunicorn_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gunicorn.arbiter", types.ModuleType("gunicorn.arbiter"))
    assert is_worker()


def test_workers_share_a_file_for_each_upstream(place: Path) -> None:
    first = shared_path(IMDS)
    assert first == shared_path(IMDS)
    assert first != shared_path(Address("127.0.0.1", 9))
    assert Path(first).parent.parent == place


@posix
def test_folder_is_closed_to_other_users(place: Path) -> None:
    assert Path(shared_path(IMDS)).parent.stat().st_mode & 0o777 == 0o700


@posix
@pytest.mark.parametrize("trap", ["writable", "link", "file"])
def test_folder_prepared_by_another_user_is_not_used(trap: str, place: Path) -> None:
    folder = Path(shared_path(IMDS)).parent
    folder.rmdir()
    if trap == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    elif trap == "link":
        (place / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(place / "elsewhere")
    else:
        folder.touch()
    with pytest.raises(NoPlaceError):
        shared_path(IMDS)


def test_second_worker_is_refused_where_budgets_cannot_be_shared(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys\n"
        "from imdsproxy.budget import workers\n"
        "from imdsproxy.protocol.address import IMDS\n"
        "workers._SHARED_MEMORY = sys.argv[1]\n"
        "workers.os.getppid = lambda: 7\n"
        "try: workers.hold_alone(IMDS)\n"
        "except workers.NoPlaceError as error: sys.exit(3)\n"
    )
    monkeypatch.setattr("os.getppid", lambda: 7)
    monkeypatch.setattr(workers, "_held", held := dict[str, int]())
    hold_alone(IMDS)
    hold_alone(IMDS)  # several applications in one process keep working
    assert run("-c", program, str(place)) == 3
    (descriptor,) = held.values()
    os.close(descriptor)
    assert run("-c", program, str(place)) == 0


def run(*arguments: str) -> int:
    return subprocess.run([sys.executable, *arguments], env=environment(), cwd=ROOT, check=False, timeout=60).returncode
