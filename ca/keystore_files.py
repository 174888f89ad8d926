"""Files of the key store: atomic writes, a lock, and strict reading of CA material.

Nothing here knows what a certificate authority is for; `ca.keystore` decides.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from ca.core.signer import SigningKey
from mesh.errors import Category, Code, MeshError
from mesh.x509 import pem

MAX_FILE_BYTES = 1 << 20
LOCK_SECONDS = 60.0
_LOCK_POLL_SECONDS = 0.02


class KeyStoreCode(Code):
    """Why CA material was refused, or could not be kept."""

    STATE_DIR = "keystore_state_dir"
    LOCK = "keystore_lock"
    FILE = "keystore_file"
    INCOMPLETE = "keystore_incomplete"
    KEY = "keystore_key"
    KEY_MISMATCH = "keystore_key_mismatch"
    NOT_CA = "keystore_not_ca"
    CHAIN = "keystore_chain"
    EXPIRED = "keystore_expired"
    CRL = "keystore_crl"
    ROOT_LOST = "keystore_root_lost"
    ROOT_CHANGED = "keystore_root_changed"
    TRUST_DOMAIN = "keystore_trust_domain"
    CLOCK = "keystore_clock"
    ROTATION = "keystore_rotation"
    CHANGED = "keystore_changed"


class KeyStoreError(MeshError):
    """The authority must not start, or must not take over new material."""

    def __init__(self, code: KeyStoreCode, public: str, *, private: str | None = None) -> None:
        super().__init__(code, public, private=private, category=Category.FAILED_PRECONDITION)


def ensure_dir(path: Path) -> None:
    """Make a directory that only its owner may enter, or check that one exists and can be written.

    Raises:
        KeyStoreError: it cannot be made, or others may write in it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except OSError as e:
        raise KeyStoreError(
            KeyStoreCode.STATE_DIR,
            f"state directory {path}: {e.strerror}; make it writable for the authority",
        ) from e
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeyStoreError(
            KeyStoreCode.STATE_DIR,
            f"state directory {path} has mode {stat.S_IMODE(mode):04o}: others may write in it; use 0700",
        )


@contextlib.contextmanager
def locked(directory: Path, *, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the directory's lock against other processes and threads.

    The kernel drops the lock when a holder dies, so there is no stale one.

    Raises:
        KeyStoreError: not granted within `seconds`.
    """
    path = directory / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise KeyStoreError(KeyStoreCode.LOCK, f"{path}: {e.strerror}") from e
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if e.errno not in {errno.EWOULDBLOCK, errno.EINTR}:
                    raise
                if time.monotonic() >= deadline:
                    raise KeyStoreError(
                        KeyStoreCode.LOCK,
                        f"{path} is held by another process for over {seconds:g} s; end it, or use another"
                        " state directory",
                    ) from e
                time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(fd)


def write_atomic(path: Path, text: str, *, mode: int) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, text, mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_dir(path.parent)


def publish_dir(parent: Path, name: str, files: dict[str, str], *, generation: str) -> None:
    """Put files under `parent/name` all at once.

    They go to a directory of their own, `name.<generation>`, and `name` is a symbolic link that is
    replaced in one step: a reader, or a crash, sees all the old files or all the new.

    Args:
        files: contents by file name; each is written with mode 0600 and synced.
        generation: differs from every earlier one, e.g. a serial number.
    """
    directory = parent / f"{name}.{generation}"
    directory.mkdir(mode=0o700)
    for file_name, text in files.items():
        _write(directory / file_name, text, 0o600)
    sync_dir(directory)
    link = parent / f".{name}.{os.getpid()}.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(directory.name)
    link.replace(parent / name)
    sync_dir(parent)


def prune(parent: Path, name: str) -> None:
    """Remove the directories of `publish_dir` that the link no longer names."""
    current = (parent / name).resolve()
    for old in parent.glob(f"{name}.*"):
        if old.resolve() != current and old.is_dir() and not old.is_symlink():
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


def _write(path: Path, text: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_dir(path: Path) -> None:
    """Make renames in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_text(path: Path) -> str:
    """Content of a CA file.

    Raises:
        KeyStoreError: it cannot be read, is too large or not ASCII.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise KeyStoreError(KeyStoreCode.FILE, f"{path}: {e.strerror}") from e
    if len(data) > MAX_FILE_BYTES:
        raise KeyStoreError(KeyStoreCode.FILE, f"{path} has more than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as e:
        raise KeyStoreError(
            KeyStoreCode.FILE, f"{path} is not a PEM file: byte {e.start} is not ASCII"
        ) from e


def load_key(path: Path) -> SigningKey:
    """The private key of a file; see `parse_key`."""
    return parse_key(read_text(path), path)


def parse_key(text: str, path: Path | str) -> SigningKey:
    """The private key of a text that holds one PEM block (PKCS#8, SEC1 or PKCS#1), not encrypted.

    Args:
        path: where the text comes from, for messages.

    Raises:
        KeyStoreError: no such key; the message never shows the content.
    """
    try:
        blocks = pem.decode_bundle(text, pem.KEY_LABELS | {"EC PARAMETERS"})
    except pem.PemError as e:
        raise KeyStoreError(
            KeyStoreCode.KEY, f"{path}: no private key in PEM ({e.code}); give an unencrypted one"
        ) from e
    keys = [der for label, der in blocks if label != "EC PARAMETERS"]  # openssl ecparam writes both
    if len(keys) != 1:
        raise KeyStoreError(KeyStoreCode.KEY, f"{path} has {len(keys)} private keys; give exactly one")
    try:
        key = load_der_private_key(keys[0], None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise KeyStoreError(
            KeyStoreCode.KEY, f"{path}: the private key cannot be loaded; is it encrypted?"
        ) from e
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise KeyStoreError(KeyStoreCode.KEY, f"{path}: the private key is neither EC nor RSA")
    return key


def check_private(path: Path) -> None:
    """Refuse a key file of ours that others can read.

    Raises:
        KeyStoreError: its mode is wider than 0600.
    """
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyStoreError(
            KeyStoreCode.KEY,
            f"{path} has mode {stat.S_IMODE(mode):04o}: others can use the key; use 0600",
        )


def encode_key(key: SigningKey) -> str:
    """PKCS#8 PEM, for writing to a file of mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
