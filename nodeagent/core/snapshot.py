"""Immutable snapshots: key, chain, bundle and version move together (S-17).

A reader that holds a snapshot can never see a key without its certificate, a leaf with the bundle of
another moment, or a secret that belongs to another identity than the one beside it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, field

from mesh.envoy.resources import ResourceSet
from mesh.spiffe import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The CA certificates that anchor one trust domain.

    Attributes:
        roots_der: DER certificates, without duplicates, in the order the CA gave them.
    """

    trust_domain: TrustDomain
    roots_der: tuple[bytes, ...]

    @property
    def version(self) -> str:
        """Content hash."""
        return hashlib.sha256(b"".join(self.roots_der)).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Svid:
    """An X.509-SVID with its private key.

    Attributes:
        chain_der: leaf first, then intermediates; never the root.
        key_pkcs8: unencrypted PKCS#8 DER of the private key; in memory only.
        serial: of the leaf, lower-case hexadecimal.
        epoch: of the root that signed it, as the authority counts; 0 when it does not.
    """

    spiffe_id: SpiffeId
    chain_der: tuple[bytes, ...]
    key_pkcs8: bytes = field(repr=False)
    serial: str
    not_before: dt.datetime
    not_after: dt.datetime
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySnapshot:
    """What a workload has at one moment.

    Attributes:
        svid: None until the first certificate came, and again once it has expired.
        bundle: None until the first bundle came; outlives the SVID.
    """

    svid: Svid | None = None
    bundle: TrustBundle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSnapshot:
    """Everything that one workload's streams may be told at one moment.

    Attributes:
        revision: grows with each publication; 0 = nothing was published yet.
        identity: what the Workload API serves.
        config: listeners, clusters, endpoints, routes and extensions. None = not compiled yet:
            discovery stays silent, because an empty state of the world would be a deletion.
        secrets: the same identity as Envoy secrets.
        starting: no decision about the identity was published yet. Without it, an identity without
            SVID means that there is none (the Workload API answers PermissionDenied, not Unavailable).
    """

    revision: int = 0
    identity: IdentitySnapshot = field(default_factory=IdentitySnapshot)
    config: ResourceSet | None = None
    secrets: ResourceSet = field(default_factory=ResourceSet)
    starting: bool = True
