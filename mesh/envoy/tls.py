"""TLS contexts: who may connect to a workload, and whom a workload believes.

Two rules hold for each context and have golden tests of their own:

* a downstream context disables stateless *and* stateful session resumption: on a resumed session
  the principal `mtls_authenticated` is blind, and a DENY by identity would answer 200;
* a list of subject alternative names is never empty, because an empty one accepts anybody.

SAN rules stand in the context, never in the root secret: matchers of the two are ORed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, tls_pb2

from mesh.envoy import messages as m
from mesh.envoy.resources import SDS_ROOTS, SDS_SVID
from mesh.policy.predicates import MatchKind, StringMatch
from mesh.spiffe import TrustDomain

TLS_SOCKET: Final = "envoy.transport_sockets.tls"
RAW_SOCKET: Final = "envoy.transport_sockets.raw_buffer"

ALPN_SERVER: Final = ("h2", "http/1.1")
"""Advertised by a server. The mesh's own tokens are looked for in the ClientHello only."""

ALPN_MESH_HTTP: Final = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
ALPN_MESH_TCP: Final = ("istio-peer-exchange", "istio")
ALPN_MESH: Final = (*ALPN_MESH_HTTP, *ALPN_MESH_TCP)
"""Tokens by which a PERMISSIVE port knows mutual TLS of the mesh from the application's own TLS."""

ALPN_CLIENT_HTTP1: Final = ("istio-http/1.1", "istio", "http/1.1")
ALPN_CLIENT_HTTP2: Final = ("istio-h2", "istio", "h2")
ALPN_CLIENT_TCP: Final = ALPN_MESH_TCP


def _uri(matcher: Any) -> Any:
    return common_pb2.SubjectAltNameMatcher(san_type=common_pb2.SubjectAltNameMatcher.URI, matcher=matcher)


def trust_domain_sans(trust_domains: Iterable[TrustDomain]) -> tuple[Any, ...]:
    """Matchers that accept any identity of the trust domains.

    The prefix ends in a slash: `spiffe://cluster.local` would accept `spiffe://cluster.localx/`.
    """
    return tuple(m.prefix(f"{m.SPIFFE_PREFIX}{domain.name}/") for domain in trust_domains)


def peer_sans(peers: Iterable[StringMatch], trust_domains: tuple[TrustDomain, ...]) -> tuple[Any, ...]:
    """Matchers that accept exactly the peers; nobody, when there are none.

    Matchers of a context are ORed, so the trust domain cannot be a second one: each has to lie in one.

    Args:
        peers: exact identities and prefixes of them (`mesh.policy.peers`).
        trust_domains: whose identities are accepted at all.

    Raises:
        RenderError: for a peer that reaches out of the trust domains, or another kind of comparison.
    """
    roots = tuple(f"{m.SPIFFE_PREFIX}{domain.name}/" for domain in trust_domains)
    found = []
    for peer in peers:
        if peer.kind not in {MatchKind.EXACT, MatchKind.PREFIX} or not peer.value.startswith(roots):
            raise m.RenderError(
                m.RenderCode.PREDICATE,
                f"{peer.value[:80]!r} does not lie within a trust domain that is accepted",
            )
        found.append(m.string_matcher(peer))
    return tuple(found) or (m.exact(m.NEVER_SAN),)


def _common(alpn: Iterable[str], sans: Iterable[Any]) -> Any:
    validation = common_pb2.CertificateValidationContext(
        match_typed_subject_alt_names=[_uri(san) for san in sans]
    )
    if not validation.match_typed_subject_alt_names:
        raise m.RenderError(m.RenderCode.OPTION, "a TLS context needs at least one name to match")
    return tls_pb2.CommonTlsContext(
        alpn_protocols=alpn,
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=common_pb2.TlsParameters.TLSv1_2,
            tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
        ),
        tls_certificate_sds_secret_configs=[m.sds(SDS_SVID)],
        combined_validation_context=tls_pb2.CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=validation,
            validation_context_sds_secret_config=m.sds(SDS_ROOTS),
        ),
    )


def downstream(sans: Iterable[Any]) -> Any:
    """Transport socket of an inbound mutual-TLS chain.

    Args:
        sans: who may connect, from `trust_domain_sans` or `peer_sans`.
    """
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=_common(ALPN_SERVER, sans),
        require_client_certificate=m.boolean(True),
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    return m.transport_socket(TLS_SOCKET, context)


def upstream(identities: Iterable[str], alpn: Iterable[str], sni: str) -> Any:
    """Transport socket of mutual TLS to a service.

    Args:
        identities: SPIFFE IDs one of which the server must prove; none = nobody can.
        sni: server name in the ClientHello, for peers that route by it.
    """
    names = [m.exact(identity) for identity in sorted(set(identities))] or [m.exact(m.NEVER_SAN)]
    context = tls_pb2.UpstreamTlsContext(
        common_tls_context=_common(alpn, names),
        sni=sni,
        # Servers of the mesh refuse resumption: a client cache would be dead weight.
        max_session_keys=m.uint32(0),
    )
    return m.transport_socket(TLS_SOCKET, context)


def raw() -> Any:
    """Transport socket without TLS."""
    return base_pb2.TransportSocket(name=RAW_SOCKET, typed_config=m.pack(raw_buffer_pb2.RawBuffer()))
