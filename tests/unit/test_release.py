"""The parts of a release: what stops it, that they are the same bytes each time, that nothing is missing in them."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from imdsproxy import __version__
from release import __main__ as program
from release import archives, bill, image
from release.chart import with_time
from release.source import Commit, ReleaseError, disagreements, export, inspect
from tests.kit import ROOT

pytestmark = [
    pytest.mark.client,
    pytest.mark.skipif(shutil.which("git") is None, reason="not installed: git"),
]
COMMIT = Commit(__version__, "0123456789" * 4, 1_700_000_000)
CHANGES = f"# Changelog\n\n## {__version__} (2026-11-27)\n\nThe first version.\n"


def git(folder: Path, *arguments: str) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    names = ("-c", "user.name=A Test", "-c", "user.email=test@example.invalid")
    done = subprocess.run(["git", *names, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def tracked() -> list[str]:
    """Return the files of the tree that are or would be committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return sorted(name for name in listed if (ROOT / name).is_file())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout of the tree as it is, with a section of the release in its changelog."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "CHANGELOG.md").write_text(CHANGES, encoding="utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=All")
    return folder


@pytest.fixture(scope="module")
def released(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a release without images."""
    folder = tmp_path_factory.mktemp("released")
    program.make(checkout, folder, tag=f"v{__version__}")
    return folder


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


# What stops it.


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Return a tree with all that states a version."""
    for name in ("pyproject.toml", "Dockerfile", "imdsproxy/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(CHANGES, encoding="utf-8")
    chart = tmp_path / "k8s" / "helm" / "imdsproxy"
    chart.mkdir(parents=True)
    (chart / "Chart.yaml").write_text(f'version: {__version__}\nappVersion: "{__version__}"\n', encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=All")
    return tmp_path


def refusal(root: Path, tag: str = "") -> str:
    with pytest.raises(ReleaseError) as caught:
        inspect(root, tag)
    return str(caught.value)


def test_clean_tree_is_released_with_the_time_of_its_commit(small: Path) -> None:
    commit = inspect(small, f"v{__version__}")
    assert commit == Commit(__version__, git(small, "rev-parse", "HEAD").strip(), commit.epoch)
    assert str(commit.epoch) == git(small, "log", "-1", "--format=%ct").strip()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("new.py", "", "the tree differs from its commit: new.py; commit the changes, or remove them"),
        ("Dockerfile", "ARG VERSION=9\n", "ARG VERSION in Dockerfile is 9, but imdsproxy/__init__.py has"),
        ("pyproject.toml", '[project]\nversion = "9"\n', "pyproject.toml is 9, but"),
        ("k8s/helm/imdsproxy/Chart.yaml", "version: 9\n", "version in k8s/helm/imdsproxy/Chart.yaml is 9, but"),
        ("CHANGELOG.md", "## Unreleased\n", f'CHANGELOG.md has no section "## {__version__}"; rename "## Unreleased"'),
        ("CHANGELOG.md", "## 0.1.05\n", f'CHANGELOG.md has no section "## {__version__}"'),
        ("CHANGELOG.md", f"## Unreleased\n\n## {__version__}\n", 'still has a section "## Unreleased"'),
        ("imdsproxy/__init__.py", "", "__init__.py states no version"),
    ],
)
def test_obstacle_is_named_with_its_remedy(small: Path, name: str, text: str, told: str) -> None:
    (small / name).write_text(text, encoding="utf-8")
    assert told in refusal(small)


def test_tag_must_name_the_version(small: Path) -> None:
    assert f"the tag is 9.9, but imdsproxy/__init__.py has {__version__}" in refusal(small, "v9.9")
    assert disagreements(small, __version__, f"v{__version__}") == []


def test_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    assert "this folder is not one" in refusal(tmp_path)


def test_missing_git_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "git is not installed" in refusal(small)


def test_folder_with_an_earlier_release_is_refused(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    into = tmp_path_factory.mktemp("dist")
    (into / "old").touch()
    with pytest.raises(ReleaseError, match="is not empty"):
        program.make(small, into)


def test_command_says_why_there_is_no_release(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert program.main(["--into", str(tmp_path), "--tag", "v9.9", "--image", "none"]) == 1
    assert all(line.startswith("release: ") for line in capsys.readouterr().err.splitlines())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wanted", ["registry", "fetched"])
def test_missing_builder_is_named(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ReleaseError, match="buildah is not installed"):
        image.check(wanted)


def test_image_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.image.shutil.which", lambda _name: "/usr/bin/buildah")
    monkeypatch.setattr("release.image.platform.machine", lambda: "s390x")
    with pytest.raises(ReleaseError, match="no image is made for s390x"):
        image.check("registry")
    image.check("none")


# What is made.


def test_release_has_every_part_and_its_checksums(released: Path) -> None:
    names = {path.name for path in released.iterdir()}
    expected = {
        f"imdsproxy-{__version__}.tar.gz",
        f"imdsproxy-{__version__}-py3-none-any.whl",
        f"imdsproxy-{__version__}.cdx.json",
        "SHA256SUMS",
    }
    chart = {f"imdsproxy-{__version__}.tgz"} if (ROOT / "k8s" / "helm" / "imdsproxy").exists() else set()
    assert names == expected | chart
    sums = dict(line.split("  ")[::-1] for line in (released / "SHA256SUMS").read_text(encoding="ascii").splitlines())
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in released.iterdir()
        if path.name != "SHA256SUMS"
    }


def test_release_made_twice_is_the_same_bytes(checkout: Path, released: Path, tmp_path: Path) -> None:
    program.make(checkout, tmp_path)
    for path in released.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_sdist_has_every_committed_file(released: Path) -> None:
    with tarfile.open(one(released, "*.tar.gz")) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
        times = {member.mtime for member in sdist.getmembers() if not member.name.endswith("/PKG-INFO")}
    assert names == {*tracked(), "PKG-INFO"}
    assert len(times) == 1


def test_wheel_has_the_package_and_nothing_else(released: Path) -> None:
    with zipfile.ZipFile(one(released, "*.whl")) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {name for name in tracked() if name.startswith("imdsproxy/")}


def test_export_has_only_what_is_committed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (small / "secret").write_text("x", encoding="ascii")
    folder = tmp_path_factory.mktemp("export")
    export(small, folder)
    assert not (folder / "secret").exists()
    assert (folder / "Dockerfile").exists()


def test_archive_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[build-system]\n", encoding="ascii")
    with pytest.raises(ReleaseError, match="the wheel cannot be built: "):
        archives.build("wheel", tmp_path, tmp_path, 0)


def test_time_of_the_chart_s_files_is_that_of_the_commit() -> None:
    def packed(mtime: int) -> bytes:
        plain = BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            for name in ("b", "a"):
                member = tarfile.TarInfo(name)
                member.size, member.mtime = 1, mtime
                archive.addfile(member, BytesIO(name.encode()))
        return gzip.compress(plain.getvalue(), mtime=mtime)

    assert with_time(packed(1), COMMIT.epoch) == with_time(packed(2), COMMIT.epoch)
    with tarfile.open(fileobj=BytesIO(with_time(packed(1), COMMIT.epoch))) as archive:
        assert [(member.name, member.mtime) for member in archive.getmembers()] == [
            ("a", COMMIT.epoch),
            ("b", COMMIT.epoch),
        ]
        file = archive.extractfile("a")
        assert file is not None
        assert file.read() == b"a"


def test_image_is_bound_to_the_commit() -> None:
    assert image.flags(COMMIT, "https://example.invalid") == [
        "--timestamp=1700000000",
        "--build-arg=SOURCE_DATE_EPOCH=1700000000",
        f"--build-arg=VERSION={__version__}",
        f"--build-arg=REVISION={COMMIT.revision}",
        "--build-arg=CREATED=2023-11-14T22:13:20Z",
        "--build-arg=SOURCE=https://example.invalid",
    ]


def test_image_of_each_stage_is_made_and_the_emulator_s_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    def buildah(*arguments: str) -> None:
        ran.append(arguments)
        if arguments[0] == "push":
            saved(tmp_path, "made").rename(arguments[-1].removeprefix("docker-archive:"))

    monkeypatch.setattr(image, "_buildah", buildah)
    monkeypatch.setattr("release.image.platform.machine", lambda: "x86_64")
    made = image.build("registry", tmp_path, tmp_path, COMMIT)
    named = [f"imdsproxy-{COMMIT.version}-{stage}image-amd64.tar" for stage in ("", "redirect-", "emulator-")]
    assert [path.name for path in made] == named
    chosen = [
        {flag for flag in arguments if "target" in flag or "LOCK" in flag}
        for arguments in ran
        if arguments[0] == "build"
    ]
    assert chosen == [set(), {"--target=redirect"}, {"--target=emulator", "--build-arg=LOCK=emulator"}]
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"redirect", "emulator"} <= stages


def saved(folder: Path, word: str) -> Path:
    """Write an archive of an image as buildah does, with what it draws at random."""
    config = {
        "container": word,
        "container_config": {"Hostname": word},
        "config": {"Hostname": word, "Cmd": ["serve"]},
        "parent": word,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]},
        "history": [{"created_by": "x", "comment": f"FROM {word}"}],
    }
    text = json.dumps(config).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [
        {"Config": name, "RepoTags": ["localhost/imdsproxy:test", "docker.io/library/imdsproxy:1"], "Layers": ["1.tar"]}
    ]
    path = folder / f"{word}.tar"
    with tarfile.open(path, "w") as archive:
        parts = {"1.tar": b"layer", name: text, "manifest.json": json.dumps(manifest).encode(), "repositories": b"{}"}
        for each, content in parts.items():
            member = tarfile.TarInfo(each)
            member.size, member.mtime = len(content), len(word)
            archive.addfile(member, BytesIO(content))
    return path


def test_archive_of_an_image_has_nothing_random_and_nothing_lost(tmp_path: Path) -> None:
    first, second = saved(tmp_path, "random"), saved(tmp_path, "drawn again")
    for path in (first, second):
        image.settle(path, COMMIT.epoch, "imdsproxy:0.1.0")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        content = {each.name: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    (manifest,) = json.loads(content["manifest.json"])
    assert manifest["RepoTags"] == ["imdsproxy:0.1.0"]
    assert content[manifest["Layers"][0]] == b"layer"
    assert manifest["Config"] == f"{hashlib.sha256(content[manifest['Config']]).hexdigest()}.json"
    config = json.loads(content[manifest["Config"]])
    assert config["config"] == {"Cmd": ["serve"]}
    assert config["rootfs"]["diff_ids"] == ["sha256:1"]


# The bill of materials.


@pytest.fixture(scope="module")
def components() -> dict[str, dict[str, Any]]:
    document = json.loads(bill.make(ROOT / "requirements", COMMIT))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    assert document["metadata"]["component"]["version"] == __version__
    assert document["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")
    return {each["name"]: each for each in document["components"]}


def test_bill_lists_every_package_of_the_locks_with_its_hashes(components: dict[str, dict[str, Any]]) -> None:
    locked: dict[str, tuple[str, int]] = {}
    for lock in ("emulator", "kubernetes", "otel", "run"):
        text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="ascii")
        for entry in text.replace("\\\n", "").splitlines():
            name, _, rest = entry.partition("==")
            locked[name] = (rest.split()[0], rest.count("--hash=sha256:"))
    found = {name: (each["version"], len(each["hashes"])) for name, each in components.items()}
    assert found == locked


def test_bill_says_what_is_required_and_under_which_licence(components: dict[str, dict[str, Any]]) -> None:
    assert components["uvicorn"]["scope"] == "required"
    assert components["lightkube"]["scope"] == "optional"
    assert {"name": "imdsproxy:extra", "value": "kubernetes"} in components["lightkube"]["properties"]
    assert components["uvicorn"]["purl"] == f"pkg:pypi/uvicorn@{components['uvicorn']['version']}"
    without = [name for name, each in components.items() if each["scope"] == "required" and not each.get("licenses")]
    assert not without
    assert components["uvicorn"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}] or components["uvicorn"][
        "licenses"
    ] == [{"expression": "BSD-3-Clause"}]


def test_bill_is_the_same_each_time_and_follows_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonStrictValidator, "validate_str", lambda _self, _text: None)  # takes a second
    assert bill.make(ROOT / "requirements", COMMIT) == bill.make(ROOT / "requirements", COMMIT)
    other = Commit(__version__, "f" * 40, COMMIT.epoch)
    assert bill.make(ROOT / "requirements", COMMIT) != bill.make(ROOT / "requirements", other)


@pytest.mark.parametrize(
    ("metadata", "classifiers", "licence"),
    [
        ({"License-Expression": "MIT", "License": "x"}, ["License :: OSI Approved :: BSD License"], "MIT"),
        ({"License": "BSD-3-Clause"}, [], "BSD-3-Clause"),
        ({"License": "Copyright\nand more"}, ["License :: OSI Approved :: BSD License"], "BSD License"),
        ({"License": "x" * 200}, [], ""),
        ({}, ["Topic :: x"], ""),
    ],
)
def test_licence_is_what_the_package_states(metadata: dict[str, str], classifiers: list[str], licence: str) -> None:
    assert bill.licence_of(metadata, classifiers) == licence


def test_package_that_is_not_installed_has_no_licence() -> None:
    assert bill._licences(bill.Locked("no-such-package", "1", "", ())) == []
    assert bill._licences(bill.Locked("pytest", "0", "", ())) == []


def test_bill_that_breaks_the_standard_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonStrictValidator, "validate_str", lambda _self, _text: "a reason")
    with pytest.raises(ReleaseError, match=r"does not follow CycloneDX 1\.6: a reason"):
        bill.make(ROOT / "requirements", COMMIT)
