"""The webhook's serving pair: read from a directory, swapped while serving, last good kept.

The certificate keeper (`injector.keeper`) writes the directory as the kubelet writes Secret volumes:
`tls.crt` and `tls.key` are links through `..data`, which changes in one rename. So the pair is read
through the directory that `..data` is at that moment; a plain directory works too.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mesh.errors import Category, Code, MeshError
from mesh.obs.logs import logger
from mesh.tls import load_pair
from mesh.x509 import pem
from mesh.x509.certs import CertError, CertFields, read_certificate

CERTIFICATE, KEY = "tls.crt", "tls.key"
DATA_LINK: Final = "..data"
MAX_FILE: Final = 256 << 10
_LOOK_EVERY: Final = 1.0  # seconds; a stat for each connection would be waste

_log = logger(__name__)


class ServingCode(Code):
    """Why a serving pair is not used."""

    MISSING = "serving_missing"
    UNREADABLE = "serving_unreadable"
    MISMATCH = "serving_mismatch"
    EXPIRED = "serving_expired"


class ServingError(MeshError):
    """There is no pair that can be served."""

    def __init__(self, code: ServingCode, public: str) -> None:
        super().__init__(code, public, category=Category.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and its key, as files have them.

    Attributes:
        leaf: first certificate of the chain.
    """

    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    leaf: CertFields

    @property
    def not_after(self) -> dt.datetime:
        """End of the leaf."""
        return self.leaf.not_after


def read_pair(directory: Path) -> Pair:
    """Read the pair of a directory.

    Raises:
        ServingError: there is none, or it is no certificate.
    """
    link = directory / DATA_LINK
    base = link.resolve() if link.is_symlink() else directory
    chain, key = _read(base / CERTIFICATE), _read(base / KEY)
    try:
        leaf = read_certificate(pem.decode_certificates(chain.decode("ascii"))[0])
    except (MeshError, UnicodeDecodeError) as error:
        raise ServingError(
            ServingCode.UNREADABLE, f"{base / CERTIFICATE} is not a PEM file of certificates: {error}"
        ) from error
    return Pair(chain, key, leaf)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise ServingError(
            ServingCode.MISSING, f"{path} is not there yet; the certificate keeper writes it"
        ) from None
    except OSError as error:
        raise ServingError(ServingCode.UNREADABLE, f"{path} cannot be read: {error.strerror}") from error
    if not 0 < len(data) <= MAX_FILE:
        raise ServingError(ServingCode.UNREADABLE, f"{path} is empty or over {MAX_FILE} bytes")
    return data


class PatientSocket(ssl.SSLSocket):
    """A TLS connection whose reads share one deadline, however slowly the bytes come (F-29).

    Attributes:
        deadline: monotonic time; None reads without end.
        received: monotonic time at which the current request reached the process.
    """

    deadline: float | None = None
    received: float = 0.0

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As `socket.recv`.

        Raises:
            ConnectionResetError: the deadline has passed; the server drops the connection.
        """
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise ConnectionResetError(104, "the peer was too slow")
            self.settimeout(left)
        try:
            return super().recv(buflen, flags)
        except TimeoutError:
            raise ConnectionResetError(104, "the peer was too slow") from None


class _Context(ssl.SSLContext):
    """Bounds the handshake of each connection that it wraps."""

    handshake_seconds: float = 5.0

    def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        sock.settimeout(self.handshake_seconds)
        return super().wrap_socket(sock, *args, **kwargs)


def server_context(pair: Pair, *, tls12: bool = False, handshake_seconds: float = 5.0) -> ssl.SSLContext:
    """TLS 1.3 (or 1.2), http/1.1 only, no client certificate, no tickets.

    Raises:
        ServingError: key and certificate do not belong together.
    """
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.handshake_seconds = handshake_seconds
    context.sslsocket_class = PatientSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if tls12 else ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])  # h2 halves the rate and doubles what can go wrong
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    try:
        load_pair(context, pair.key_pem, pair.chain_pem)
    except ssl.SSLError as error:
        raise ServingError(
            ServingCode.MISMATCH,
            f"{KEY} is not the key of {CERTIFICATE}, or one of them is damaged ({error.reason})",
        ) from error
    return context


class Serving:
    """The pair in force.

    Args:
        loaded: called with True or False after each change of the files.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tls12: bool = False,
        handshake_seconds: float = 5.0,
        loaded: Callable[[bool], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._tls12 = tls12
        self._handshake_seconds = handshake_seconds
        self._loaded = loaded
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen: object = None
        self._looked = float("-inf")
        self._pair: Pair | None = None
        self._context: ssl.SSLContext | None = None
        self.problem = "has not been read yet"

    @property
    def pair(self) -> Pair | None:
        """What is served now."""
        return self._pair

    def context(self) -> ssl.SSLContext:
        """For the server, which asks at each connection.

        Raises:
            ServingError: there has never been a good pair.
        """
        if self._monotonic() - self._looked >= _LOOK_EVERY:
            self.refresh()
        if self._context is None:
            raise ServingError(ServingCode.MISSING, f"no certificate to serve: {self.problem}")
        return self._context

    def refresh(self) -> bool:
        """Look at the files; True when another pair is served from now on. The last good one is kept."""
        with self._lock:
            self._looked = self._monotonic()
            seen = self._stat()
            if seen == self._seen:
                return False
            try:
                pair = read_pair(self._directory)
                if self._pair is not None and (pair.chain_pem, pair.key_pem) == (
                    self._pair.chain_pem,
                    self._pair.key_pem,
                ):
                    self._seen = seen
                    return False
                self._context = server_context(
                    pair, tls12=self._tls12, handshake_seconds=self._handshake_seconds
                )
            except (ServingError, CertError) as error:
                # Half-written files look like this: they are read again at the next look, and the
                # failure is told once.
                if str(error) != self.problem:
                    _log.warning("the serving pair is not used", error=error)
                    self._loaded(False)
                self.problem = str(error)
                return False
            self._pair, self._seen, self.problem = pair, seen, ""
        _log.info("serving certificate in force", serial=pair.leaf.serial, not_after=pair.not_after)
        self._loaded(True)
        return True

    def _stat(self) -> object:
        found = []
        for name in (CERTIFICATE, KEY):
            try:
                at = (self._directory / name).stat()
                found.append((at.st_ino, at.st_dev, at.st_mtime_ns, at.st_size))
            except OSError:
                found.append((0, 0, 0, 0))
        return tuple(found)
