"""What a request for a certificate may say beside its CSR, and the keys that were seen before. Pure.

The metadata of the CSR API can ask for another identity than the caller's own (node agents of other
meshes do). Nobody may do that here: an agent proves each workload with the workload's own token.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from ca.authn import AuthnCode, AuthnError, Caller, Presented
from mesh.errors import Category, Code, MeshError
from mesh.spiffe import SpiffeId, SpiffeIdError, TrustDomain

IMPERSONATED: Final = "ImpersonatedIdentity"
CERT_SIGNER: Final = "CertSigner"
MAX_METADATA_KEYS: Final = 32


class RequestCode(Code):
    """Why a request was refused, beside its credentials and its CSR."""

    MALFORMED = "request_malformed"
    METADATA = "request_metadata"
    IMPERSONATION_INVALID = "impersonation_invalid"
    IMPERSONATION_DENIED = "impersonation_denied"
    KEY_OF_OTHER_IDENTITY = "key_of_other_identity"
    KEY_REUSED = "key_reused"
    KEY_OF_AUTHORITY = "key_of_authority"
    LATE = "request_late"
    GONE = "request_gone"
    INTERNAL = "internal"


HOSTILE: Final = frozenset(
    {RequestCode.IMPERSONATION_DENIED, RequestCode.KEY_OF_OTHER_IDENTITY, RequestCode.KEY_OF_AUTHORITY}
)
"""Codes that no honest client causes."""


class RequestError(MeshError):
    """A request that is not acceptable."""


class RequestHead(NamedTuple):
    """What is known of a request before its message has arrived.

    Attributes:
        cluster_ids: every value of the `clusterid` header.
        peer: address of the other side, for the audit trail.
    """

    presented: Presented
    cluster_ids: Sequence[str] = ()
    peer: str = ""


class Refuse(Protocol):
    """Audits and counts a refusal, as `ca.service.IssuanceService.refuse` does."""

    def __call__(self, error: MeshError, caller: Caller | None, *, peer: str) -> None:
        """Called once for each refusal."""
        ...


class CertificateRequest(NamedTuple):
    """The message.

    Attributes:
        validity_seconds: 0 asks for the default lifetime.
        metadata: the Struct of the request as plain data.
    """

    csr_pem: str
    validity_seconds: int = 0
    metadata: Mapping[str, Any] = MappingProxyType({})

    def __repr__(self) -> str:
        return f"CertificateRequest(validity_seconds={self.validity_seconds})"


def check_cluster(cluster_ids: Sequence[str], known: frozenset[str]) -> None:
    """A caller may name its cluster, and then it must be one that the tokens come from (F-27).

    Raises:
        AuthnError: unknown, or named more than once.
    """
    if len(cluster_ids) > 1 or not known.issuperset(cluster_ids):
        raise AuthnError(AuthnCode.CLUSTER, f"clusterid is {[c[:80] for c in cluster_ids[:4]]}")


def check_metadata(metadata: Mapping[str, Any], caller: SpiffeId, trust_domain: TrustDomain) -> None:
    """Refuse what the metadata asks for and this authority does not do (F-23 to F-26).

    Raises:
        RequestError: with the key that is wrong.
    """
    if not metadata:
        return
    if len(metadata) > MAX_METADATA_KEYS:
        raise RequestError(
            RequestCode.METADATA, f"metadata has {len(metadata)} keys; allowed are {MAX_METADATA_KEYS}"
        )
    signer = metadata.get(CERT_SIGNER, "")
    if signer != "":
        raise RequestError(
            RequestCode.METADATA,
            f"metadata {CERT_SIGNER} is {_show(signer)}; this authority has one signer: leave it out",
        )
    wanted = metadata.get(IMPERSONATED, "")
    if wanted == "":
        return
    identity = _impersonated(wanted, trust_domain)
    raise RequestError(
        RequestCode.IMPERSONATION_DENIED,
        f"metadata {IMPERSONATED}: no caller may ask for another identity; send the workload's own token",
        category=Category.PERMISSION_DENIED,
        private=f"{caller} asks to act for {identity}",
    )


def _impersonated(value: Any, trust_domain: TrustDomain) -> SpiffeId:
    if not isinstance(value, str):
        raise RequestError(
            RequestCode.IMPERSONATION_INVALID, f"metadata {IMPERSONATED} is {_show(value)}; it must be text"
        )
    try:
        identity = SpiffeId.parse(value)
        identity.service_account()
    except SpiffeIdError as e:
        raise RequestError(RequestCode.IMPERSONATION_INVALID, f"metadata {IMPERSONATED}: {e.public}") from e
    if str(identity) != value or identity.trust_domain != trust_domain:
        raise RequestError(
            RequestCode.IMPERSONATION_INVALID,
            f"metadata {IMPERSONATED} is {_show(value)}; it must start with {trust_domain.id} in lower case",
        )
    return identity


def _show(value: Any) -> str:
    return repr(value)[:100]


class KeyMemory:
    """Which identity a public key was last issued for, as hashes; the oldest are forgotten first.

    A key that turns up under another identity was copied or stolen (F-15). Two replicas do not share
    what they remember: this narrows a hole, it does not close it.

    Args:
        capacity: keys to remember; about 250 bytes each.
        allow_reuse: when false, a key is refused even to the identity that had it (F-14).
    """

    def __init__(self, capacity: int, *, allow_reuse: bool = True) -> None:
        self._capacity = capacity
        self._allow_reuse = allow_reuse
        self._lock = threading.Lock()
        self._owners: OrderedDict[bytes, SpiffeId] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def claim(self, spki_der: bytes, identity: SpiffeId) -> bool:
        """Note that a proven key belongs to an identity, in one step with the check.

        Returns:
            True when the key was seen before, with this very identity.

        Raises:
            RequestError: it belongs to another identity, or reuse is not allowed.
        """
        digest = hashlib.sha256(spki_der).digest()
        with self._lock:
            owner = self._owners.get(digest)
            if owner is None or owner == identity:
                self._owners[digest] = identity
                self._owners.move_to_end(digest)
            if len(self._owners) > self._capacity:
                self._owners.popitem(last=False)
        if owner is None:
            return False
        if owner != identity:
            raise RequestError(
                RequestCode.KEY_OF_OTHER_IDENTITY,
                "CSR: this public key is not acceptable; make a new key",
                category=Category.PERMISSION_DENIED,
                private=f"CSR of {identity} holds a public key that was issued to {owner}",
            )
        if not self._allow_reuse:
            raise RequestError(
                RequestCode.KEY_REUSED, "CSR: this public key has a certificate already; make a new key"
            )
        return True
