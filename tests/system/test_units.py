"""The units in `config/systemd/`: read by systemd's own tools, and executed as far as possible without systemd.

No systemd runs where the tests do. What a unit says is read from the unit itself, so that the tests hold the files:
`confined` applies what confines a process, `systemd-socket-activate` opens the sockets.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from imdsproxy.server.connection_limit import room
from imdsproxy.server.memory_bound import MOST_CONNECTIONS, most_memory
from imdsproxy.settings.load import Settings
from tests.kit import METADATA, ROOT, Answer, wait_until
from tests.system import confined
from tests.system.confined import LIBSECCOMP, Confinement
from tests.system.topology import ORDINARY_USER, PROXY_USER, ROUTE_LOCALNET, Azure, HostedProxy
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.system

UNITS = ROOT / "config" / "systemd"
SERVICES = ("imdsproxy.service", "imdsproxy-redirect.service")
PROGRAM = "/opt/imdsproxy/bin/imdsproxy"
TOOLS = ("systemd-analyze", "systemd-socket-activate", "systemd-sysusers", "systemd-tmpfiles")
ENVIRONMENT_READER = Path("/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator")
# Exposure as systemd-analyze counts it, 0 to 10, times ten; what it is made of stands in the units.
MOST_EXPOSED = {"imdsproxy.service": 12, "imdsproxy-redirect.service": 14}
# libuv asks whether it could have it, and uses epoll(7) otherwise.
DONE_WITHOUT = ["io_uring_setup"]
ADDRESS = "127.0.0.1:8254"


@pytest.fixture(scope="module", autouse=True)
def _able(_able: None) -> None:
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    absent += [str(ENVIRONMENT_READER)] if not ENVIRONMENT_READER.exists() else []
    try:
        ctypes.CDLL(LIBSECCOMP)
    except OSError:
        absent.append(LIBSECCOMP)
    if absent:
        reason = f"not installed: {', '.join(absent)}"
        if os.environ.get("REQUIRE_SYSTEM_TESTS"):
            pytest.fail(f"REQUIRE_SYSTEM_TESTS is set, but {reason}", pytrace=False)
        pytest.skip(reason)


def settings_of(*files: str) -> dict[str, list[str]]:
    """Return a unit's settings, by name, with those of its drop-ins; an empty one takes back what stood before."""
    found: dict[str, list[str]] = {}
    for file in files:
        for line in (UNITS / file).read_text(encoding="ascii").splitlines():
            name, equals, value = line.partition("=")
            if line.startswith("#") or not equals:
                continue
            values = found.setdefault(name, [])
            values.append(value)
            if not value:
                values.clear()
    return found


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a machine's files: systemd's units, the project's, and the programs that they name."""
    folder = tmp_path / "root"
    shutil.copytree("/usr/lib/systemd/system", folder / "usr/lib/systemd/system", symlinks=True)
    ours = folder / "etc/systemd/system"
    ours.mkdir(parents=True)
    for unit in (*SERVICES, "imdsproxy.socket"):
        shutil.copy(UNITS / unit, ours)
    for name in (PROGRAM, "/bin/kill", "/usr/sbin/sysctl"):
        program = folder / name[1:]
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n", encoding="ascii")
        program.chmod(0o755)
    return folder


def add_node_drop_in(root: Path) -> None:
    folder = root / "etc/systemd/system/imdsproxy-redirect.service.d"
    folder.mkdir()
    shutil.copy(UNITS / "imdsproxy-redirect-node.conf", folder)


# What systemd's tools say


@pytest.mark.parametrize("node", [False, True])
def test_systemd_verifies_the_units(root: Path, node: bool) -> None:
    if node:
        add_node_drop_in(root)
    verify = ("systemd-analyze", "verify", "--man=no", f"--root={root}", *SERVICES, "imdsproxy.socket")
    assert run(*verify) == ""
    with (root / "etc/systemd/system/imdsproxy.service").open("a", encoding="ascii") as unit:
        unit.write("[Service]\nNoNewPrivilege=yes\n")
    assert "'NoNewPrivilege'" in run(*verify, check=False)


@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_of_the_services_does_not_increase(root: Path, unit: str) -> None:
    add_node_drop_in(root)
    judge = ("systemd-analyze", "security", "--offline=true", "--no-pager", f"--root={root}", unit)
    told = run(*judge, f"--threshold={MOST_EXPOSED[unit]}")
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert level is not None
    assert round(10 * float(level[1])) == MOST_EXPOSED[unit], "less: then less is to be held from now on"


def test_user_is_created_and_cannot_log_in(root: Path) -> None:
    run("systemd-sysusers", f"--root={root}", str(UNITS / "imdsproxy.sysusers"))
    (user,) = [
        line.split(":")
        for line in (root / "etc/passwd").read_text(encoding="ascii").splitlines()
        if line.startswith("imdsproxy:")
    ]
    assert 0 < int(user[2]) < 1000
    assert user[6].endswith("/nologin")
    assert re.search(r"^imdsproxy:", (root / "etc/group").read_text(encoding="ascii"), re.MULTILINE)


def test_folder_belongs_to_the_user_and_keeps_its_content(root: Path) -> None:
    run("systemd-sysusers", f"--root={root}", str(UNITS / "imdsproxy.sysusers"))
    users = (root / "etc/passwd").read_text(encoding="ascii")
    (user,) = re.findall(r"^imdsproxy:[^:]*:(\d+):(\d+):", users, re.MULTILINE)
    folder = root / "run/imdsproxy"
    for _ in range(2):
        run("systemd-tmpfiles", "--create", f"--root={root}", str(UNITS / "imdsproxy.tmpfiles"))
        found = folder.stat()
        assert (stat.S_IMODE(found.st_mode), str(found.st_uid), str(found.st_gid)) == (0o750, *user)
        (folder / "budget").write_text("spent", encoding="ascii")
        os.chown(folder, 0, 0)  # as a socket's unit makes a folder that is not there
    assert (folder / "budget").read_text(encoding="ascii") == "spent"


def test_systemd_reads_the_environment_file_as_intended(tmp_path: Path) -> None:
    # The reader of environment.d is the one of EnvironmentFile=, and shows what it has read.
    folder = tmp_path / "environment.d"
    folder.mkdir()
    text = (ROOT / "config" / "imdsproxy.env").read_text(encoding="ascii")
    for written in (text, re.sub(r"(?m)^# (?=IMDSPROXY_\w+=.)", "", text)):
        (folder / "imdsproxy.conf").write_text(written, encoding="ascii")
        read = subprocess.run(
            [ENVIRONMENT_READER], env={"XDG_CONFIG_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
        )
        assert read.stderr == ""
        expected = [line for line in written.splitlines() if line and not line.startswith("#")]
        shell = 'eval "$1"; env'
        shown = subprocess.run(
            ["sh", "-c", f"set -a; {shell}", "sh", read.stdout], env={}, capture_output=True, text=True, check=True
        )
        found = [line for line in shown.stdout.splitlines() if line.startswith("IMDSPROXY_")]
        assert sorted(found) == sorted(expected)


# What the files say of each other


def test_files_agree_on_places_and_user() -> None:
    service, listeners = settings_of("imdsproxy.service"), settings_of("imdsproxy.socket")
    redirect = settings_of("imdsproxy-redirect.service")
    address, unix = listeners["ListenStream"]
    assert address == f"{Settings().host}:{Settings().port}" == ADDRESS
    budget, handover = service["Environment"]
    (folder,) = service["ReadWritePaths"]
    assert budget == f"IMDSPROXY_BUDGET_FILE={folder}/budget"
    assert handover == f"IMDSPROXY_HANDOVER_FILE={folder}/handover"
    assert Path(unix).parent == Path(folder)
    made = (UNITS / "imdsproxy.tmpfiles").read_text(encoding="ascii")
    assert f"\nd {folder} " in made
    assert service["User"] == service["Group"] == listeners["SocketGroup"] == ["imdsproxy"]
    assert "RuntimeDirectory" not in service, "its end would take the socket away"
    for command in (*redirect["ExecStart"], *redirect["ExecReload"]):
        assert " --uid=imdsproxy " in command
    assert service["EnvironmentFile"] == redirect["EnvironmentFile"]
    # What is redirected finds a socket.
    assert redirect["BindsTo"] == service["Requires"] == ["imdsproxy.socket"]
    assert "imdsproxy.socket" in redirect["After"]
    # A start is tried again, but not where a setting is wrong, and a stop may take what the proxy's own grace takes.
    assert service["RestartPreventExitStatus"] == ["2"]
    assert int(service["TimeoutStopSec"][0]) > 10


# Carried out


def allowed_calls(settings: dict[str, list[str]]) -> list[str]:
    """Return the system calls that SystemCallFilter= allows: the first list, less those with a tilde."""
    known: dict[str, list[str]] = {}
    group = ""
    for line in run("systemd-analyze", "--no-pager", "syscall-filter").splitlines():
        word = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
        if line.strip() and not line.startswith(" "):
            group = word
        elif word and not word.startswith("#"):
            known.setdefault(group, []).append(word)

    def expanded(names: list[str]) -> set[str]:
        return {call for name in names for call in (expanded(known[name]) if name.startswith("@") else [name])}

    first, *others = settings["SystemCallFilter"]
    calls = expanded(first.split())
    for other in others:
        calls -= expanded(other.removeprefix("~").split())
    return sorted(calls)


def confinement(unit: str, *command: str, capabilities: tuple[str, ...] = ()) -> Confinement:
    settings = settings_of(unit)
    assert settings["SystemCallErrorNumber"] == ["EPERM"]
    for switch in (
        "RestrictNamespaces",
        "RestrictSUIDSGID",
        "NoNewPrivileges",
        "MemoryDenyWriteExecute",
        "PrivateTmp",
        "PrivateMounts",
    ):
        assert settings[switch] == ["yes"]
    assert settings["LimitCORE"] == ["0"]
    assert (settings["ProtectSystem"], settings["ProtectProc"]) == (["strict"], ["invisible"])
    return Confinement(
        command=list(command),
        user=PROXY_USER,
        # The interpreter may lie in a home directory, which others than its owner cannot enter.
        capabilities=["dac_read_search", *capabilities],
        writable=settings.get("ReadWritePaths", []),
        calls=allowed_calls(settings),
        families=settings["RestrictAddressFamilies"][0].split(),
        umask=int(settings["UMask"][0], 8),
        refused=DONE_WITHOUT,
        inaccessible=[
            path.removeprefix("-") for value in settings.get("InaccessiblePaths", []) for path in value.split()
        ],
    )


def arguments(command: str) -> list[str]:
    """Return a unit's command as one of this checkout's, the proxy's user being the tests' own."""
    program, *rest = command.split()
    assert program == PROGRAM
    return [sys.executable, "-m", "imdsproxy", *(one.replace("=imdsproxy", f"={PROXY_USER}") for one in rest)]


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def get_unix(path: Path, target: str) -> Answer:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", target, headers=METADATA)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read())
    finally:
        connection.close()


@pytest.fixture
def activated(azure: Azure, tmp_path: Path) -> Iterator[tuple[HostedProxy, Path]]:
    """Run the service in vm as its units do: sockets opened beforehand, started by the first connection."""
    service = settings_of("imdsproxy.service")
    unix = tmp_path / "imdsproxy.sock"
    command = confinement("imdsproxy.service", *arguments(*service["ExecStart"]))
    log = tmp_path / "service.log"
    opened = ("systemd-socket-activate", f"--listen={ADDRESS}", f"--listen={unix}")
    given = [f"--setenv={one}" for one in (f"PYTHONPATH={ROOT}", *service["Environment"])]
    started = (*opened, *given, sys.executable, "-IS", confined.__file__, command.write(tmp_path / "confinement"))
    with azure.vm.start(*started, log=log) as process:
        wait_until(lambda: unix.exists() or process.poll() is not None)
        yield HostedProxy(azure.vm, process, log, 8254), unix
        if process.poll() is None:
            process.terminate()
            assert process.wait(15) == 0, log.read_text(encoding="utf-8")


def test_service_runs_as_its_unit_confines_it(azure: Azure, activated: tuple[HostedProxy, Path]) -> None:
    proxy, unix = activated
    answer = proxy.get(INSTANCE)
    assert answer.status == 200, proxy.log
    wait_until(lambda: proxy.answers("/-/ready"))
    assert (proxy.get(TOKEN).status, get_unix(unix, INSTANCE).status) == (200, 200)
    assert get_unix(unix, INSTANCE).headers["cache-status"].startswith("imdsproxy; hit"), "one cache for both"
    status = Path(f"/proc/{proxy.process.pid}/status").read_text(encoding="ascii")
    assert re.search(rf"^Uid:\t{PROXY_USER}\t{PROXY_USER}\t", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    # Of what is confined nothing is needed: emptied, spent, read, and ended as the unit does it.
    proxy.signal(signal.SIGHUP)
    wait_until(lambda: "hit" not in get_unix(unix, INSTANCE).headers["cache-status"])
    assert proxy.metric("imdsproxy_upstream_requests_total") >= 3
    budget = Path(f"/proc/{proxy.process.pid}/root/run/imdsproxy/budget").stat()
    assert (stat.S_IMODE(budget.st_mode), budget.st_uid) == (0o660, PROXY_USER)
    proxy.process.terminate()
    assert proxy.process.wait(15) == 0, proxy.log
    assert "warning" not in proxy.log.lower(), proxy.log  # none about the handover file either, which its end makes


def test_service_limits_have_room_for_its_needs(azure: Azure, activated: tuple[HostedProxy, Path]) -> None:
    proxy, _ = activated
    service = settings_of("imdsproxy.service")
    assert proxy.get(INSTANCE).status == 200
    settings = Settings()
    most = int(service["MemoryHigh"][0].removesuffix("M")) * 1024 * 1024
    connections = min(MOST_CONNECTIONS, room(int(service["LimitNOFILE"][0])))
    assert connections == MOST_CONNECTIONS
    assert most_memory(settings.cache_max_bytes, settings.max_body_bytes, connections) < most
    assert proxy.resident_bytes() < most_memory(settings.cache_max_bytes, settings.max_body_bytes, 1)
    threads = len(list(Path(f"/proc/{proxy.process.pid}/task").iterdir()))
    # asyncio's own pool, which resolves names, and the child that reads the settings.
    assert threads + 5 <= int(service["TasksMax"][0])


def test_socket_named_admin_serves_only_the_pages(azure: Azure, tmp_path: Path) -> None:
    unix = tmp_path / "imdsproxy.sock"
    log = tmp_path / "service.log"
    opened = [f"--listen={one}" for one in (ADDRESS, unix, "10.0.0.4:8256")]
    command = (sys.executable, "-m", "imdsproxy")
    activate = ("systemd-socket-activate", *opened, "--fdname=clients:containers:admin", f"--setenv=PYTHONPATH={ROOT}")
    with azure.vm.start(*activate, *command, log=log) as process:
        wait_until(lambda: unix.exists() or process.poll() is not None)
        proxy = HostedProxy(azure.vm, process, log, 8254)
        wait_until(lambda: proxy.answers("/-/ready"))
        for page in ("/-/healthy", "/-/ready", "/-/metrics"):
            assert azure.neighbour.fetch(f"http://10.0.0.4:8256{page}").status == 200
        assert azure.neighbour.fetch(f"http://10.0.0.4:8256{INSTANCE}").status == 404
        assert (proxy.get(INSTANCE).status, get_unix(unix, INSTANCE).status) == (200, 200)
        process.terminate()
        assert process.wait(15) == 0, proxy.log
        assert unix.is_socket(), "it is not the proxy's"


def test_forbidden_system_call_ends_the_process(tmp_path: Path, azure: Azure) -> None:
    tries = {
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)": -signal.SIGSYS,
        "os.setuid(0)": -signal.SIGSYS,
        "open('/etc/imdsproxy-was-here', 'w')": 30,  # read-only
        "open('/run/imdsproxy/x', 'w')": 0,
        "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)": 13,
        "open('/proc/1/cmdline')": 2,  # as if there were no other process
    }
    for attempt, outcome in tries.items():
        script = f"import mmap, os, socket, sys\ntry: {attempt}\nexcept OSError as error: sys.exit(error.errno)"
        it = confinement("imdsproxy.service", sys.executable, "-ISc", script)
        done = azure.vm.run(sys.executable, "-IS", confined.__file__, it.write(tmp_path / "confinement"), check=False)
        assert done.returncode == outcome, (attempt, done.stderr)


def test_redirect_unit_has_the_rights_that_it_needs(azure: Azure, tmp_path: Path) -> None:
    unit = "imdsproxy-redirect.service"
    settings = settings_of(unit)

    def carried_out(command: str) -> str:
        it = confinement(unit, *arguments(command), capabilities=("net_admin",))
        return azure.vm.run(sys.executable, "-IS", confined.__file__, it.write(tmp_path / "confinement")).stderr

    with azure.running_proxy():
        for name in ("ExecStart", "ExecReload"):
            assert f"except those of user {PROXY_USER}\n" in carried_out(*settings[name])
            assert azure.vm.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
        assert "chain answer" in azure.vm.run("nft", "list", "table", "ip", "imdsproxy").stdout
        carried_out(*settings["ExecStop"])
        assert not azure.vm.fetch(INSTANCE, user=ORDINARY_USER).by_proxy


def test_redirected_connections_have_the_machines_own_address(azure: Azure) -> None:
    # So the socket's unit must not deny them, other than the service's, which is for what goes out.
    assert not {"IPAddressDeny", "IPAddressAllow"} & settings_of("imdsproxy.socket").keys()
    assert settings_of("imdsproxy.service")["IPAddressAllow"] == ["localhost 169.254.169.254"]
    azure.redirect("--node", "--root")
    azure.vm.sysctl(ROUTE_LOCALNET, 1)
    with azure.vm.inside():
        listener = socket.create_server(("127.0.0.1", 8254))
    call = "import socket; socket.create_connection(('169.254.169.254', 80), 10).recv(1)"
    with listener:
        listener.settimeout(10)
        for host, address in ((azure.vm, "10.0.0.4"), (azure.routed, "10.0.0.50")):
            with host.start(sys.executable, "-ISc", call):
                connection, (peer, _) = listener.accept()
                connection.close()
            assert peer == address


def test_node_drop_in_sets_route_localnet_only_while_guarded(azure: Azure) -> None:
    settings = settings_of("imdsproxy-redirect.service", "imdsproxy-redirect-node.conf")

    def carry_out(name: str) -> None:
        for command in settings[name]:
            whole = command.removeprefix("+")
            azure.vm.run(*(arguments(whole) if whole.startswith(PROGRAM) else whole.split()))

    def loopback_is_open() -> str:
        return azure.vm.run("cat", "/proc/sys/" + ROUTE_LOCALNET.replace(".", "/")).stdout

    with azure.running_proxy():
        carry_out("ExecStart")
        assert loopback_is_open() == "0\n"
        carry_out("ExecStartPost")
        for host in (azure.routed, azure.bridged, azure.vm):
            assert host.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
        carry_out("ExecReload")
        assert azure.routed.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
        carry_out("ExecStop")
        assert loopback_is_open() == "0\n"
        assert not azure.routed.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
