"""The bundle document as it is published, with a sequence number that survives restarts.

The number is the time at which this state directory first saw the roots, in seconds, and always more
than the one before: a reader never sees it fall (B-01, B-09), and replicas with directories of their own
stay close to each other.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from ca.core.bundle import DEFAULT_REFRESH_HINT, Bundle, encode_bundle
from ca.keystore_files import locked, write_atomic
from mesh.spiffe import TrustDomain

SEQUENCE_FILE = "bundle-sequence.json"


@dataclass(frozen=True, slots=True)
class Document:
    """What `/bundle` answers."""

    body: bytes = field(repr=False)
    etag: str
    sequence: int


class PublishedBundle:
    """Keeps the document in step with the roots."""

    def __init__(
        self, trust_domain: TrustDomain, state_dir: Path, *, refresh_hint: int = DEFAULT_REFRESH_HINT
    ) -> None:
        self._trust_domain = trust_domain
        self._state_dir = state_dir
        self._refresh_hint = refresh_hint
        self._roots: tuple[bytes, ...] | None = None
        self._document: Document | None = None

    @property
    def document(self) -> Document | None:
        """The document in force; None before the first `update`."""
        return self._document

    def update(self, roots: Sequence[bytes], now: dt.datetime) -> bool:
        """Publish these roots.

        Returns:
            True when they differ from those before.

        Raises:
            BundleError, KeyStoreError, OSError: the document stays as it was.
        """
        new = tuple(roots)
        if new == self._roots:
            return False
        sequence = self._sequence(new, now)
        bundle = Bundle(
            trust_domain=self._trust_domain,
            roots_der=new,
            sequence=sequence,
            refresh_hint=self._refresh_hint,
        )
        body = encode_bundle(bundle)
        self._document = Document(body, hashlib.sha256(body).hexdigest()[:32], sequence)
        self._roots = new
        return True

    def _sequence(self, roots: tuple[bytes, ...], now: dt.datetime) -> int:
        digest = hashlib.sha256(b"".join(sorted(roots))).hexdigest()
        path = self._state_dir / SEQUENCE_FILE
        with locked(self._state_dir):
            held = _read(path)
            if held is not None and held[0] == digest:
                return held[1]
            sequence = max(int(now.timestamp()), held[1] + 1 if held is not None else 0)
            text = orjson.dumps({"roots": digest, "sequence": sequence}).decode()
            write_atomic(path, text, mode=0o600)
            return sequence


def _read(path: Path) -> tuple[str, int] | None:
    """Digest and number of the file; None when it is not there or not ours, and a new one is made."""
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    if not isinstance(found, dict):
        return None
    digest, sequence = found.get("roots"), found.get("sequence")
    if isinstance(digest, str) and isinstance(sequence, int):
        return digest, sequence
    return None
