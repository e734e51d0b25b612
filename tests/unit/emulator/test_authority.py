"""The authority of the emulator, in memory and in a folder."""

from __future__ import annotations

import datetime as dt
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from imdsproxy.emulator import authority, authority_file
from imdsproxy.emulator.authority import Authority, issue, make_authority, pem, token_key
from imdsproxy.emulator.authority_file import open_authority
from imdsproxy.emulator.errors import KeysError
from imdsproxy.emulator.keys import Keys

pytestmark = [pytest.mark.any_python, pytest.mark.skipif(sys.platform == "win32", reason="modes are of POSIX")]


@pytest.fixture(scope="module")
def made() -> Authority:
    return make_authority()


@pytest.fixture
def folder(tmp_path: Path, made: Authority, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for an authority; making a key once is enough for all tests."""
    monkeypatch.setattr(authority_file, "make_authority", lambda: made)
    return tmp_path / "ca"


def test_authority_is_good_for_attested_documents_alone(made: Authority) -> None:
    for certificate, length in ((made.root, 1), (made.intermediate, 0)):
        extensions = certificate.extensions
        limits = extensions.get_extension_for_class(x509.NameConstraints)
        assert limits.critical
        names = [name.value for name in limits.value.permitted_subtrees or ()]
        assert names == ["metadata.azure.com", "metadata.azure.us", "metadata.azure.cn", "metadata.microsoftazure.de"]
        assert extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == length


def test_signing_certificate_names_its_intermediate(made: Authority) -> None:
    certificate = issue(made, "emulator.metadata.azure.cn", "http://h/-/ca/intermediate.cer").certificate
    assert certificate.subject.rfc4514_string() == "CN=emulator.metadata.azure.cn"
    assert certificate.issuer == made.intermediate.subject
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert [each.access_location.value for each in access] == ["http://h/-/ca/intermediate.cer"]


def test_authority_is_made_once(folder: Path) -> None:
    first, second = open_authority(folder), open_authority(folder)
    assert pem(first.root) == pem(second.root) == (folder / "root.pem").read_bytes()
    assert token_key(first) == token_key(second)
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"ca": 0o700, "authority.pem": 0o600, "root.pem": 0o644}


def test_key_of_the_root_is_not_kept(folder: Path) -> None:
    open_authority(folder)
    assert (folder / "authority.pem").read_bytes().count(b"PRIVATE KEY-----\n") == 4, "of intermediate and tokens"


def test_two_emulators_that_start_together_share_one_authority(
    folder: Path, made: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late() -> Authority:
        monkeypatch.setattr(authority_file, "make_authority", lambda: made)
        open_authority(folder)
        return make_authority()

    monkeypatch.setattr(authority_file, "make_authority", late)
    assert open_authority(folder).root == made.root
    assert sorted(path.name for path in folder.iterdir()) == ["authority.pem", "root.pem"]


def replaced(old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes().replace(old, new))


def other_key(file: Path) -> None:
    content, key = file.read_bytes(), rsa.generate_private_key(65_537, 2048)
    start = content.index(b"-----BEGIN PRIVATE KEY")
    new = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(content[:start] + new + new)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.parent.chmod(0o750), "has mode 0750, so that others can use its keys; run chmod 700 "),
        (lambda file: file.chmod(0o640), "has mode 0640, so that others can use its keys; run chmod 600 "),
        (lambda file: file.write_bytes(b""), "does not hold what the emulator wrote"),
        (replaced(b"BEGIN PRIVATE", b"BEGIN ENCRYPTED PRIVATE"), "does not hold what the emulator wrote"),
        (replaced(b"BEGIN CERTIFICATE", b"BEGIN NOTHING"), "does not hold what the emulator wrote"),
        (other_key, "does not hold what the emulator wrote (other keys); remove "),
        (lambda file: (file.unlink(), file.symlink_to("/dev/null")), "Too many levels of symbolic links"),
        (pipe, "is no file; remove it"),
        (lambda file: (file.unlink(), file.mkdir()), "is no file; remove it"),
    ],
)
def test_spoilt_folder_is_refused_with_the_remedy(folder: Path, spoil: Callable[[Path], object], words: str) -> None:
    open_authority(folder)
    spoil(folder / "authority.pem")
    with pytest.raises(KeysError) as error:
        open_authority(folder)
    assert words in str(error.value)
    assert str(folder) in str(error.value)


def test_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_authority(folder)
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(KeysError, match=f"belongs to user {owner}, not to the user of the emulator"):
        open_authority(folder)


def test_file_or_link_is_no_folder(tmp_path: Path, folder: Path) -> None:
    open_authority(folder)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(KeysError, match=f"{name} is no folder; name one"):
            open_authority(tmp_path / name)
    with pytest.raises(KeysError, match="No such file or directory"):
        open_authority(tmp_path / "nothing" / "ca")


def test_authority_that_has_ended_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "_LIFE", dt.timedelta(hours=-1))
    with pytest.raises(KeysError, match=r"was good until \d{4}-\d\d-\d\d; remove .*authority.pem so that a new one"):
        open_authority(tmp_path / "ca")


def test_intermediate_of_another_root_is_refused(folder: Path, made: Authority) -> None:
    open_authority(folder)
    file = folder / "authority.pem"
    file.write_bytes(file.read_bytes().replace(pem(made.root), pem(make_authority().root)))
    with pytest.raises(KeysError, match="does not hold what the emulator wrote"):
        open_authority(folder)


def test_keys_of_a_folder_stay_and_others_are_of_the_process(folder: Path) -> None:
    kept = [token_key(Keys(folder).authority())["kid"] for _ in range(2)]
    shared = [token_key(Keys().authority())["kid"] for _ in range(2)]
    assert kept[0] == kept[1] != shared[0] == shared[1]


def test_signing_certificate_is_one_for_the_whole_run() -> None:
    keys = Keys()
    first, other = keys.credentials("metadata.azure.com"), keys.credentials("metadata.azure.us")
    assert keys.credentials("metadata.azure.com") is first
    assert other.certificate.subject.rfc4514_string() == "CN=emulator.metadata.azure.us"
