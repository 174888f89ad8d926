"""Identities as the demo's own clients see them: read from the Workload API, and watched.

An application with any SPIFFE library would do the same. The demo asks each workload's socket in the
workload's place, and so sees every renewal: serial number and public key.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from examples.demo.layout import WORKLOADS, Layout
from mesh._proto import workload_pb2, workload_pb2_grpc

_HEADER = (("workload.spiffe.io", "true"),)
_PAUSE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An SVID with its key and the roots, as PEM; the key never touches a disk.

    Attributes:
        public_key: short hash, to see that a key is new.
    """

    spiffe_id: str
    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    roots_pem: bytes
    serial: str
    public_key: str
    not_after: dt.datetime


def split_der(data: bytes) -> list[x509.Certificate]:
    """Certificates of a concatenation of DER values."""
    found = []
    while data:
        length = _der_length(data)
        found.append(x509.load_der_x509_certificate(data[:length]))
        data = data[length:]
    return found


def _der_length(data: bytes) -> int:
    first = data[1]
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def read_identity(message: workload_pb2.X509SVIDResponse) -> Identity:
    """The default SVID of a Workload API message."""
    svid = message.svids[0]
    chain = split_der(svid.x509_svid)
    key = serialization.load_der_private_key(svid.x509_svid_key, None)
    leaf = chain[0]
    public = leaf.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Identity(
        spiffe_id=svid.spiffe_id,
        chain_pem=b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        roots_pem=b"".join(c.public_bytes(serialization.Encoding.PEM) for c in split_der(svid.bundle)),
        serial=f"{leaf.serial_number:x}",
        public_key=hashlib.sha256(public).hexdigest()[:12],
        not_after=leaf.not_valid_after_utc,
    )


class Watch:
    """Follows one workload's SVID on an open stream, as long as the demo runs."""

    def __init__(self, workload: str, socket: Path) -> None:
        self.workload = workload
        self._target = f"unix:{socket}"
        self._lock = threading.Lock()
        self._history: list[Identity] = []
        self._stop = threading.Event()
        self._call: grpc.RpcContext | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch-{workload}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the stream and the thread."""
        self._stop.set()
        if self._call is not None:
            self._call.cancel()
        if self._thread.ident is not None:
            self._thread.join(5)

    @property
    def history(self) -> list[Identity]:
        """All SVIDs so far, oldest first, without repetitions."""
        with self._lock:
            return list(self._history)

    @property
    def current(self) -> Identity | None:
        """The newest one."""
        with self._lock:
            return self._history[-1] if self._history else None

    def _run(self) -> None:
        with grpc.insecure_channel(self._target) as channel:
            stub = workload_pb2_grpc.SpiffeWorkloadAPIStub(channel)  # type: ignore[no-untyped-call]  # generated
            while not self._stop.is_set():
                try:
                    self._follow(stub)
                except grpc.RpcError:
                    # Not there yet, or no identity yet: a client of this API retries.
                    self._stop.wait(_PAUSE)

    def _follow(self, stub: workload_pb2_grpc.SpiffeWorkloadAPIStub) -> None:
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=_HEADER)
        self._call = stream
        for message in stream:
            identity = read_identity(message)
            with self._lock:
                if not self._history or self._history[-1].serial != identity.serial:
                    self._history.append(identity)


class Watches:
    """The watches of all workloads."""

    def __init__(self, layout: Layout) -> None:
        self._watches = {name: Watch(name, layout.socket(name)) for name in WORKLOADS}

    def start(self) -> None:
        for watch in self._watches.values():
            watch.start()

    def stop(self) -> None:
        for watch in self._watches.values():
            watch.stop()

    def __getitem__(self, workload: str) -> Watch:
        return self._watches[workload]

    def ready(self) -> bool:
        """Every workload has an SVID."""
        return all(watch.current is not None for watch in self._watches.values())

    def counts(self) -> dict[str, int]:
        """How many SVIDs each workload has had."""
        return {name: len(watch.history) for name, watch in self._watches.items()}
