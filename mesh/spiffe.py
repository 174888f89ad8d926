"""SPIFFE IDs and trust domains: parse or raise, then trust the type.

Source: the SPIFFE-ID standard (spiffe/spiffe, standards/SPIFFE-ID.md, sections 2.1 to 2.4). The
rows T-01 to T-11 of the conformance list name the rules; `tests/unit/mesh/test_spiffe.py` has one
case per row.

Every check uses a full match: `re.match` with `$` would accept a trailing newline.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mesh.errors import Code, MeshError

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048  # SPIFFE-ID 2.3: MUST support up to 2048, SHOULD NOT generate longer
MAX_TRUST_DOMAIN_BYTES = 255  # SPIFFE-ID 2.1

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
# Kubernetes object names (RFC 1123): a namespace is a label, a service account name a subdomain.
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_SERVICE_ACCOUNT = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_MAX_SERVICE_ACCOUNT = 253
_WORKLOAD_SEGMENTS = 4  # ns/<namespace>/sa/<service account>


class SpiffeIdCode(Code):
    """Why a SPIFFE ID or trust domain was refused."""

    EMPTY = "id_empty"
    TOO_LONG = "id_too_long"
    SCHEME = "id_scheme"
    TRUST_DOMAIN = "id_trust_domain"
    PATH = "id_path"
    NOT_WORKLOAD = "id_not_workload"
    KUBERNETES_NAME = "id_kubernetes_name"


class SpiffeIdError(MeshError):
    """Text that is not a SPIFFE ID, or not one of the wanted form."""


def _fail(code: SpiffeIdCode, message: str) -> SpiffeIdError:
    return SpiffeIdError(code, message)


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """A trust domain name such as `cluster.local`; always lower case."""

    name: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.name):
            raise _fail(
                SpiffeIdCode.TRUST_DOMAIN,
                f"trust domain {self.name[:80]!r}: allowed are 1 to 255 of the characters a-z 0-9 . _ -"
                " (lower case; no scheme, port, user or path)",
            )

    @property
    def id(self) -> SpiffeId:
        """The trust domain's own SPIFFE ID, which has no path."""
        return SpiffeId(self, "")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A SPIFFE ID. `path` is empty for a trust domain, else it starts with `/`.

    Equality is by value with other `SpiffeId`s only; text must be parsed first.
    """

    trust_domain: TrustDomain
    path: str

    def __post_init__(self) -> None:
        _check_path(self.path)
        if len(self.trust_domain.name) + len(self.path) + len(SCHEME) > MAX_ID_BYTES:
            raise _fail(SpiffeIdCode.TOO_LONG, f"SPIFFE ID is longer than {MAX_ID_BYTES} bytes")

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Parse a URI.

        The scheme and the trust domain are compared without regard to case and come out in lower
        case (T-01, T-02); the path is taken as it is (T-04).

        Raises:
            SpiffeIdError: with the rule that the text breaks.
        """
        if not text:
            raise _fail(SpiffeIdCode.EMPTY, "SPIFFE ID is empty")
        if len(text) > MAX_ID_BYTES:
            raise _fail(SpiffeIdCode.TOO_LONG, f"SPIFFE ID is longer than {MAX_ID_BYTES} bytes")
        if not text.isascii():
            raise _fail(SpiffeIdCode.PATH, f"SPIFFE ID {text[:80]!r} has non-ASCII characters")
        if text[: len(SCHEME)].lower() != SCHEME:
            raise _fail(SpiffeIdCode.SCHEME, f"SPIFFE ID {text[:80]!r} must start with {SCHEME}")
        authority, slash, rest = text[len(SCHEME) :].partition("/")
        return cls(TrustDomain(authority.lower()), slash + rest)

    @classmethod
    def for_service_account(cls, trust_domain: TrustDomain, namespace: str, name: str) -> SpiffeId:
        """The identity of a Kubernetes service account: `spiffe://<td>/ns/<namespace>/sa/<name>`.

        Raises:
            SpiffeIdError: when a name is not a legal Kubernetes name (T-10).
        """
        if not _NAMESPACE.fullmatch(namespace):
            raise _fail(
                SpiffeIdCode.KUBERNETES_NAME,
                f"namespace {namespace[:80]!r}: not an RFC 1123 label (a-z 0-9 -, at most 63)",
            )
        if len(name) > _MAX_SERVICE_ACCOUNT or not _SERVICE_ACCOUNT.fullmatch(name):
            raise _fail(
                SpiffeIdCode.KUBERNETES_NAME,
                f"service account {name[:80]!r}: not an RFC 1123 subdomain (a-z 0-9 - ., at most 253)",
            )
        return cls(trust_domain, f"/ns/{namespace}/sa/{name}")

    @property
    def is_trust_domain(self) -> bool:
        """True when the ID has no path (T-08)."""
        return not self.path

    def service_account(self) -> tuple[str, str]:
        """Namespace and service account of a workload ID.

        Raises:
            SpiffeIdError: when the path is not of the form `/ns/<namespace>/sa/<name>` (X-16).
        """
        parts = self.path[1:].split("/")
        if (
            len(parts) != _WORKLOAD_SEGMENTS
            or (parts[0], parts[2]) != ("ns", "sa")
            or not _NAMESPACE.fullmatch(parts[1])
            or len(parts[3]) > _MAX_SERVICE_ACCOUNT
            or not _SERVICE_ACCOUNT.fullmatch(parts[3])
        ):
            raise _fail(
                SpiffeIdCode.NOT_WORKLOAD,
                f"{self} is not of the form {SCHEME}<trust domain>/ns/<namespace>/sa/<service account>",
            )
        return parts[1], parts[3]

    def __hash__(self) -> int:
        """Of the path alone: text remembers its hash, and identities key the caches of the hot paths."""
        return hash(self.path)

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain.name}{self.path}"


def _check_path(path: str) -> None:
    if not path:
        return
    if path[0] != "/":
        raise _fail(SpiffeIdCode.PATH, f"path {path[:80]!r} must start with '/'")
    for segment in path[1:].split("/"):
        if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
            raise _fail(
                SpiffeIdCode.PATH,
                f"path {path[:80]!r}: segment {segment[:40]!r} is not allowed (letters, digits, '.', '_',"
                " '-'; not empty, not '.' or '..'; no trailing slash, query or fragment)",
            )
