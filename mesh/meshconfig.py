"""Mesh-wide options: one frozen value that policy resolution and rendering receive."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.spiffe import TrustDomain


class PathNormalization(enum.Enum):
    """What happens to a request path before rules see it; the result is also forwarded.

    Istio's names. The default is the strictest: `//admin` and `/%2fadmin` are `/admin`.
    """

    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


class OutboundPolicy(enum.Enum):
    """REDIRECT mode: where a connection to an unknown destination goes."""

    ALLOW_ANY = "ALLOW_ANY"
    REGISTRY_ONLY = "REGISTRY_ONLY"


class ForwardClientCert(enum.Enum):
    """What a sidecar does with `x-forwarded-client-cert` on mutual-TLS connections."""

    SANITIZE_SET = "SANITIZE_SET"  # drop what came, set the one true element (default)
    APPEND_FORWARD = "APPEND_FORWARD"  # Istio's: only the last element can be believed


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """Mesh-wide options.

    Attributes:
        trust_domain: identities are issued in it; `cluster.local` in a policy means it.
        trust_domain_aliases: peers of these trust domains are accepted too.
        root_namespace: policies in it apply to the whole mesh.
        jwt_require_expiration: refuse tokens without `exp`.
        jwt_clock_skew_seconds: tolerance on `exp` and `nbf`.
        drain_seconds: how long old TCP connections live after a change of their chain.
        max_connection_seconds: an HTTP connection is told to end by that age (from 90 % of it on), so
            that a peer proves its identity anew; 0 = never. A handshake is checked once, so a
            connection can outlive its certificate and a removed root by this much: keep it under the
            lifetime of leaves.
    """

    trust_domain: TrustDomain
    trust_domain_aliases: tuple[TrustDomain, ...] = ()
    root_namespace: str = "istio-system"
    path_normalization: PathNormalization = PathNormalization.DECODE_AND_MERGE_SLASHES
    outbound_policy: OutboundPolicy = OutboundPolicy.ALLOW_ANY
    forward_client_cert: ForwardClientCert = ForwardClientCert.SANITIZE_SET
    jwt_require_expiration: bool = False
    jwt_clock_skew_seconds: int = 60
    drain_seconds: int = 30
    max_connection_seconds: int = 43_200

    @property
    def trust_domains(self) -> tuple[TrustDomain, ...]:
        """The own trust domain, then its aliases."""
        return (self.trust_domain, *self.trust_domain_aliases)
