"""An authority that stays: in a folder that only its user can read, made once.

| file | holds | mode |
|---|---|---|
| `authority.pem` | the certificates, the key of the intermediate and that of access tokens | 0600 |
| `root.pem` | the root certificate, for those that are to trust it | 0644 |

Windows has no such modes: there the folder's access list decides, which `%LOCALAPPDATA%` restricts to the user.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import secrets
import stat
import sys
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from imdsproxy.emulator.authority import Authority, make_authority, pem
from imdsproxy.emulator.errors import KeysError

SECRETS = "authority.pem"
ROOT = "root.pem"
_MOST_BYTES = 65_536
_KEY = re.compile(rb"-----BEGIN PRIVATE KEY-----.+?-----END PRIVATE KEY-----\n", re.DOTALL)


def open_authority(folder: Path) -> Authority:
    """Return the authority of a folder; make the folder and the authority if they do not exist.

    Raises:
        KeysError: Others can read or change it, or it holds no authority that is still good; with the remedy.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _check_folder(folder)
        if not os.path.lexists(folder / SECRETS):
            _create(folder / SECRETS, make_authority())
        authority = _read(folder / SECRETS)
        _publish(folder / ROOT, pem(authority.root))
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise KeysError(f"{reason}; name a folder that the user of the emulator can make and write") from None
    return authority


def _check_folder(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise KeysError(f"{folder} is no folder; name one, or one that does not exist yet")
    _check_private(folder, found, "700")


def _check_private(path: Path, found: os.stat_result, wanted: str) -> None:
    if sys.platform == "win32":
        return
    if found.st_uid != os.geteuid():
        raise KeysError(
            f"{path} belongs to user {found.st_uid}, not to the user of the emulator; name a folder of your own"
        )
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise KeysError(f"{path} has mode {mode:04o}, so that others can use its keys; run chmod {wanted} {path}")


def _create(path: Path, authority: Authority) -> None:
    """Write the file as a whole, unless another process was faster."""
    content = b"".join(
        (
            pem(authority.root),
            pem(authority.intermediate),
            *(
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                for key in (authority.intermediate_key, authority.token_key)
            ),
        )
    )
    _write(path, content, 0o600, replace=False)


def _publish(path: Path, content: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
    _write(path, content, 0o644, replace=True)


def _write(path: Path, content: bytes, mode: int, *, replace: bool) -> None:
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        if replace:
            new.replace(path)
        else:
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(new)
    finally:
        new.unlink(missing_ok=True)


def _read(path: Path) -> Authority:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeysError(f"{path} is no file; remove it")
        _check_private(path, found, "600")
        content = os.read(descriptor, _MOST_BYTES)
    finally:
        os.close(descriptor)
    remedy = f"remove {path} so that a new one is made"
    try:
        root, intermediate = x509.load_pem_x509_certificates(content)
        intermediate_key, token_key = (load_pem_private_key(key, None) for key in _KEY.findall(content))
        intermediate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature) as error:
        reason = str(error) or type(error).__name__
        raise KeysError(f"{path} does not hold what the emulator wrote ({reason}); {remedy}") from None
    if (
        not isinstance(intermediate_key, ec.EllipticCurvePrivateKey)
        or not isinstance(token_key, rsa.RSAPrivateKey)
        or intermediate_key.public_key() != intermediate.public_key()
    ):
        raise KeysError(f"{path} does not hold what the emulator wrote (other keys); {remedy}")
    end = min(root.not_valid_after_utc, intermediate.not_valid_after_utc)
    if end <= dt.datetime.now(dt.UTC):
        raise KeysError(f"the authority in {path} was good until {end:%Y-%m-%d}; {remedy}")
    return Authority(root, intermediate, intermediate_key, token_key)
