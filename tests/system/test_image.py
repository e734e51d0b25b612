"""The image of the `Dockerfile`: built, unpacked, and run as a container runtime runs it."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from imdsproxy import __version__
from release.image import flags, settle
from release.source import Commit
from tests.kit import ROOT, cache_status, is_hit, wait_until
from tests.size import size
from tests.system.containers import Mount, contained, run_contained
from tests.system.hosts import Host, link
from tests.system.image import DOCKERFILE, Builder, Image, build_both, build_plain_emulator, in_memory, missing
from tests.system.topology import ORDINARY_USER, PROXY_PORT, Azure, HostedProxy
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.system

USER = 65532
COMMIT = Commit(__version__, "f" * 40, 1_700_000_000)
SOURCE = "https://example.invalid/imdsproxy"
CONTEXT = (
    "imdsproxy",
    "container",
    "requirements/run.txt",
    "requirements/kubernetes.txt",
    "requirements/emulator.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
_LOAD = """
import importlib, os, subprocess
from pathlib import Path
for module in os.listdir("/usr/lib/python3.11/lib-dynload"):
    importlib.import_module(module.partition(".")[0])
libraries = [path for folder in ("/usr", "/opt") for path in Path(folder).rglob("*") if path.is_file()]
libraries = [path for path in libraries if path.open("rb").read(4) == b"\x7fELF"]
linker = next(path for path in libraries if path.name.startswith("ld-linux"))
for library in libraries:
    listed = subprocess.run([linker, "--list", library], capture_output=True, text=True).stdout
    assert "not found" not in listed, (library, listed)
print(len(libraries))
"""


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    if reason := missing():
        if os.environ.get("REQUIRE_SYSTEM_TESTS"):
            pytest.fail(f"REQUIRE_SYSTEM_TESTS is set, but {reason}", pytrace=False)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("images")
    with in_memory(folder):
        yield Builder(folder)
        if not folder.is_mount():
            shutil.rmtree(folder)  # two gigabytes, which pytest would keep


@pytest.fixture(scope="module")
def built(builder: Builder) -> tuple[str, str]:
    """Return the names of both images, built as those of a release."""
    return build_both(builder, *flags(COMMIT, SOURCE))


@pytest.fixture(scope="module")
def images(builder: Builder, built: tuple[str, str]) -> tuple[Image, Image]:
    proxy, redirect = built
    return builder.unpack(proxy), builder.unpack(redirect)


@pytest.fixture(scope="module")
def image(images: tuple[Image, Image]) -> Image:
    return images[0]


@pytest.fixture(scope="module")
def redirect_image(images: tuple[Image, Image]) -> Image:
    return images[1]


@pytest.fixture(scope="module")
def emulator_image(builder: Builder, images: tuple[Image, Image]) -> Image:
    return builder.unpack(build_plain_emulator(builder))


@contextlib.contextmanager
def running(azure: Azure, image: Image, *, mounts: Sequence[Mount] = (), **settings: object) -> Iterator[HostedProxy]:
    """Run the image in vm with these settings alone; begins once IMDS has answered, ends as a runtime ends it."""
    log = azure.folder / f"container-{time.monotonic_ns()}.log"
    began = time.monotonic()
    with contained(
        azure.vm,
        *image.command,
        root=image.root,
        env=image.env(**settings),
        user=image.user,
        group=image.group,
        mounts=mounts,
        log=log,
    ) as process:
        proxy = HostedProxy(azure.vm, process, log, int(str(settings.get("port", PROXY_PORT))))
        wait_until(lambda: proxy.answers("/-/ready"))
        print(f"ready after {time.monotonic() - began:.2f} s, {proxy.resident_bytes() / 2**20:.0f} MiB")  # noqa: T201
        yield proxy
        if process.poll() is None:
            process.send_signal(signal.Signals[image.config["StopSignal"]])
            assert process.wait(10) == 0, proxy.log


def health(node: Host, image: Image, /, *, mounts: Sequence[Mount] = (), **settings: object) -> tuple[int, str]:
    """Return the status of the image's health check, in a container with these settings, and what it says."""
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"  # not CMD-SHELL
    env = image.env(**settings)
    began = time.monotonic()
    done = run_contained(
        node, *command, root=image.root, env=env, user=image.user, group=image.group, mounts=mounts, timeout=10
    )
    print(f"health check: {(time.monotonic() - began) * 1000:.0f} ms, the making of a container included")  # noqa: T201
    return done.returncode, done.stdout + done.stderr


def files(image: Image) -> dict[str, os.stat_result]:
    """Return every file, folder and link of an image, by its path there."""
    return {f"/{path.relative_to(image.root)}": path.lstat() for path in sorted(image.root.rglob("*"))}


# What it is made of.


def test_build_sees_only_what_it_needs(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n", encoding="ascii")
    context = builder.unpack(builder.build("context:test", dockerfile=tmp_path / "Dockerfile"))
    named = [ROOT / name for name in CONTEXT]
    allowed = {path for one in named for path in ([one] if one.is_file() else one.rglob("*")) if path.is_file()}
    wanted = {f"/{path.relative_to(ROOT)}" for path in allowed if path.parent.name != "__pycache__"}
    assert {path for path, state in files(context).items() if stat.S_ISREG(state.st_mode)} == wanted


@pytest.mark.parametrize("which", ["image", "redirect_image"])
def test_user_can_write_no_file_and_no_file_is_setuid(which: str, request: pytest.FixtureRequest) -> None:
    image: Image = request.getfixturevalue(which)
    all_files = files(image)
    writable = {
        path
        for path, state in all_files.items()
        if not stat.S_ISLNK(state.st_mode) and (state.st_mode & stat.S_IWOTH or USER in {state.st_uid, state.st_gid})
    }
    assert writable == {"/run/imdsproxy"}
    assert [path for path, state in all_files.items() if state.st_mode & (stat.S_ISUID | stat.S_ISGID)] == []
    assert [path for path in all_files if os.listxattr(f"{image.root}{path}", follow_symlinks=False)] == []
    assert {state.st_uid for path, state in all_files.items() if path not in writable} == {0}


def test_only_python_and_the_proxy_are_executable(image: Image, redirect_image: Image) -> None:
    def programs(image: Image) -> set[str]:
        folders = ("/usr/bin", "/usr/sbin", "/opt/imdsproxy/bin")
        return {path for path in files(image) if path.startswith(folders) and path not in folders}

    venv = {f"/opt/imdsproxy/bin/{name}" for name in ("imdsproxy", "uvicorn", "python", "python3", "python3.11")}
    assert programs(image) == {"/usr/bin/python3.11", *venv}
    assert programs(redirect_image) - programs(image) == {"/usr/sbin/nft"}


def test_no_tool_of_the_build_is_left(image: Image) -> None:
    packages = image.root / "opt/imdsproxy/lib/python3.11/site-packages"
    installed = {path.name.split("-")[0].lower().replace("_", "-") for path in packages.glob("*.dist-info")}
    requirements = (ROOT / "requirements" / "run.txt").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", requirements, re.MULTILINE))
    assert installed == locked - {"flit-core"} | {"imdsproxy"}
    assert not any(path.startswith(("/tmp", "/var/cache", "/var/lib/apt", "/usr/lib/apt")) for path in files(image))


def test_every_module_is_compiled_and_unchecked(image: Image) -> None:
    for source in [
        *(image.root / "opt/imdsproxy/lib").rglob("*.py"),
        *(image.root / "usr/lib/python3.11").glob("*.py"),
    ]:
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc"
        # PEP 552: by hash, and not to be checked.
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 0b01, source


def test_every_library_is_there(image: Image, redirect_image: Image) -> None:
    with Host("node") as node:
        for one in (image, redirect_image):
            done = run_contained(node, "/usr/bin/python3.11", "-Ic", _LOAD, root=one.root, env=one.env())
            assert done.returncode == 0, done.stderr
            assert int(done.stdout) > 10
        done = run_contained(node, "nft", "--version", root=redirect_image.root, env=redirect_image.env())
        assert done.returncode == 0, done.stderr


def test_labels_describe_the_image(image: Image, redirect_image: Image) -> None:
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in image.config["Labels"].items()}
    assert labels["title"] == "imdsproxy"
    assert labels["licenses"] == "MIT"
    assert labels["version"] == __version__
    assert "description" in labels
    assert (labels["revision"], labels["source"]) == (COMMIT.revision, SOURCE)
    assert labels["created"] == "2023-11-14T22:13:20Z"
    assert labels["base.name"] == re.findall(r"^ARG BASE=(.*)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)[0]
    assert redirect_image.config["Labels"]["org.opencontainers.image.title"] == "imdsproxy redirect"
    assert set(image.config["ExposedPorts"]) == {"8254/tcp", "8256/tcp"}
    assert (image.user, image.group, redirect_image.user) == (USER, USER, 0)
    with Host("node") as node:
        done = run_contained(node, "imdsproxy", "--version", root=image.root, env=image.env())
    assert done.stdout == f"imdsproxy {__version__}\n"
    for one in (image, redirect_image):
        print(f"layers: {one.layers} bytes")  # noqa: T201


def test_base_is_pinned_and_version_is_current() -> None:
    lines = DOCKERFILE.read_text(encoding="utf-8")
    assert f"ARG VERSION={__version__}\n" in lines
    assert re.search(r"^ARG BASE=[a-z]+:[0-9.]+-slim$", lines, re.MULTILINE)


def test_release_images_made_twice_are_the_same_bytes(builder: Builder, built: tuple[str, str], tmp_path: Path) -> None:
    """Building takes minutes, so that `make test` saves one build twice, and only `make test-long` builds twice."""
    again = build_both(builder, *flags(COMMIT, SOURCE)) if size(short=False, full=True) else built
    digests = []
    for name in (*built, *again):
        path = tmp_path / "image.tar"
        builder.save(name, path)
        settle(path, COMMIT.epoch, "imdsproxy:test")
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        path.unlink()
    assert digests[:2] == digests[2:]


# What it does.


def test_image_serves_by_default_and_exits_with_0(azure: Azure, image: Image) -> None:
    with running(azure, image) as proxy:
        first, second = proxy.get(INSTANCE), proxy.get(INSTANCE)
        assert (first.status, is_hit(first), is_hit(second)) == (200, False, True)
        assert proxy.get(TOKEN).status == 200
        assert "stored" in cache_status(first)
        assert len(azure.arrivals(INSTANCE)) == 1
        assert health(azure.vm, image) == (0, "")
        outside = azure.neighbour.fetch(f"http://10.0.0.4:{PROXY_PORT}{INSTANCE}")
        assert "refused" in outside.error
    assert "Traceback" not in proxy.log


def test_image_runs_as_any_user(image: Image) -> None:
    with Host("node") as node:
        done = run_contained(
            node, "imdsproxy", "config", root=image.root, env=image.env(port=9), user=1000660000, group=0
        )
    assert done.returncode == 0, done.stderr
    assert "IMDSPROXY_PORT" in done.stdout


def test_check_in_a_container_skips_what_needs_root_or_nft(azure: Azure, image: Image) -> None:
    with running(azure, image):
        done = run_contained(
            azure.vm,
            *("imdsproxy", "check", "--json"),
            root=image.root,
            env=image.env(),
            user=image.user,
            group=image.group,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {step["step"]: step for step in json.loads(done.stdout)["steps"]}
    assert found["answer"]["asked"] == f"the proxy at http://127.0.0.1:{PROXY_PORT}"
    assert found["redirect"]["code"] == "redirect-unknown"
    assert "nft is not installed" in found["redirect"]["found"]


def test_image_listens_on_all_addresses_if_configured(azure: Azure, image: Image) -> None:
    with running(azure, image, host="0.0.0.0"):
        assert azure.neighbour.fetch(f"http://10.0.0.4:{PROXY_PORT}{INSTANCE}").by_proxy
        assert health(azure.vm, image, host="0.0.0.0") == (0, "")


def test_shared_files_are_in_a_volume(azure: Azure, image: Image, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)
    os.chown(volume, USER, USER)
    mounts = [Mount(volume, "/run/imdsproxy")]
    socket = "/run/imdsproxy/imdsproxy.sock"
    with running(azure, image, mounts=mounts, uds=socket, budget_file="/run/imdsproxy/budget"):
        assert health(azure.vm, image, mounts=mounts, uds=socket) == (0, "")
        assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in volume.iterdir()} == {
            "imdsproxy.sock": 0o660,
            "budget": 0o660,
        }
    status, said = health(azure.vm, image, mounts=mounts, uds=socket)
    assert status == 1
    assert said.count("\n") == 1


# How it is.


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        ({"host": "10.0.0.4"}, ""),
        ({"port": 9254}, ""),
        ({"admin_port": 8256}, ""),
        ({"admin_port": 8256, "admin_host": "10.0.0.4"}, ""),
        ({}, "port = 9254\nadmin_port = 8256\n"),
    ],
)
def test_health_check_uses_the_configured_listeners(
    azure: Azure, image: Image, tmp_path: Path, settings: dict[str, object], file: str
) -> None:
    mounts = []
    if file:
        (tmp_path / "imdsproxy.toml").write_text(file, encoding="ascii")
        mounts = [Mount(tmp_path / "imdsproxy.toml", "/etc/imdsproxy.toml", read_only=True)]
        settings = {"config_file": "/etc/imdsproxy.toml"}
    assert health(azure.vm, image, mounts=mounts, **settings)[0] == 1
    log = azure.folder / "container.log"
    with contained(
        azure.vm, *image.command, root=image.root, env=image.env(**settings), mounts=mounts, log=log
    ) as process:
        wait_until(lambda: process.poll() is not None or health(azure.vm, image, mounts=mounts, **settings)[0] == 0)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        # Each place counts: one where nothing listens is missed beside one that answers.
        status, said = health(azure.vm, image, mounts=mounts, **{**settings, "admin_port": 7})
        assert status == 1
        assert re.fullmatch(r"not healthy: [0-9.]+:7: .*refused\n", said)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "answers 'HTTP/1.1 503 Service Unavailable'"),
        (b"", "answers ''"),
        (None, "timed out"),
    ],
)
def test_health_check_accepts_only_200(image: Image, answer: bytes | None, said: str) -> None:
    serve = (
        "import socket, sys, time\nlistener = socket.create_server(('127.0.0.1', 8254))\n"
        "print('here', flush=True)\nconnection = listener.accept()[0]\nconnection.recv(4096)\n"
        f"answer = {answer!r}\ntime.sleep(600) if answer is None else connection.sendall(answer)\n"
    )
    with Host("node") as node, contained(node, "python", "-ISc", serve, root=image.root, env=image.env()) as process:
        with node.inside():
            listened = Path("/proc/thread-self/net/tcp").read_text
            wait_until(lambda: ":203E " in listened(encoding="ascii"))
        status, reason = health(node, image)
        process.kill()  # it handles no signal
    assert (status, said in reason, reason.count("\n")) == (1, True, 1), reason


def test_port_0_is_unhealthy(image: Image) -> None:
    with Host("node") as node:
        status, said = health(node, image, port=0)
    assert status == 1
    assert "IMDSPROXY_PORT=0" in said


# What brings clients to it.


def test_redirect_needs_one_capability_and_no_shell(azure: Azure, image: Image, redirect_image: Image) -> None:
    def redirect(*flags: str, capabilities: Sequence[str] = ("net_admin",)) -> tuple[int, str]:
        done = run_contained(
            azure.vm,
            *redirect_image.config["Entrypoint"],
            *(flags or redirect_image.config["Cmd"]),
            root=redirect_image.root,
            env=redirect_image.env(),
            user=redirect_image.user,
            group=redirect_image.group,
            capabilities=capabilities,
        )
        return done.returncode, done.stderr

    status, said = redirect(capabilities=())
    assert status != 0
    assert "CAP_NET_ADMIN" in said
    with running(azure, image):
        assert not azure.vm.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
        status, said = redirect()
        assert status == 0, said
        assert azure.vm.fetch(INSTANCE, user=ORDINARY_USER).by_proxy
        assert not azure.vm.fetch(INSTANCE, user=USER).by_proxy
        status, said = redirect("--remove")
        assert status == 0, said
        assert not azure.vm.fetch(INSTANCE, user=ORDINARY_USER).by_proxy


# The emulator.


def test_compose_network_has_the_emulator_at_the_address_of_imds(emulator_image: Image, tmp_path: Path) -> None:
    """The network of the compose file, in namespaces: a bridge, its subnet, its addresses, its sysctls."""
    composed = yaml.safe_load((ROOT / "config" / "compose" / "emulator.yaml").read_text(encoding="utf-8"))
    imds, program = composed["services"]["imds"], composed["services"]["program"]
    subnet = ipaddress.ip_network(composed["networks"]["imds"]["ipam"]["config"][0]["subnet"])
    address = ipaddress.ip_address(imds["networks"]["imds"]["ipv4_address"])
    assert str(address) == "169.254.169.254"
    assert address in subnet
    assert imds["build"] == {"context": "../..", "target": "emulator", "args": {"LOCK": "emulator"}}
    assert imds["image"] == program["image"] == f"imdsproxy-emulator:{__version__}"
    with Host("bridge") as bridge, Host("imds") as server, Host("program") as client:
        bridge.ip("link add name imds type bridge", "link set imds up", f"addr add {subnet[1]}/24 dev imds")
        for host, own in ((server, address), (client, subnet[2])):
            link(host, "eth0", bridge, f"to-{host.name}")
            bridge.ip(f"link set to-{host.name} master imds")
            host.ip(f"addr add {own}/{subnet.prefixlen} dev eth0")
        for name, value in imds["sysctls"].items():
            server.sysctl(name, int(value))
        log = tmp_path / "emulator.log"
        image = emulator_image
        command = [*image.config["Entrypoint"], *imds["command"]]
        assert health(server, image)[0] == 1
        with contained(
            server, *command, root=image.root, env=image.env(), user=image.user, group=image.group, log=log
        ) as process:
            wait_until(lambda: process.poll() is not None or health(server, image) == (0, ""))
            assert process.poll() is None, log.read_text(encoding="utf-8")
            asked = run_contained(client, *program["entrypoint"], root=image.root, env=image.env())
            assert (asked.returncode, asked.stdout) == (0, "westus\n"), asked.stderr
            hard_coded = client.fetch("/metadata/instance?api-version=2021-02-01")
            assert (hard_coded.status, hard_coded.by_proxy) == (200, False)
            process.send_signal(signal.Signals[image.config["StopSignal"]])
            assert process.wait(10) == 0
