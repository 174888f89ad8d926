"""TLS contexts: P1 (no resumption), P5 (waiting for ever), secure naming that is never empty."""

from __future__ import annotations

import pytest
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

from mesh.envoy import messages as m
from mesh.envoy import tls
from mesh.policy.predicates import MatchKind, StringMatch
from mesh.spiffe import TrustDomain

TD = TrustDomain("cluster.local")
OLD = TrustDomain("old.example")


def downstream_of(socket):
    assert socket.name == "envoy.transport_sockets.tls"
    return tls_pb2.DownstreamTlsContext.FromString(socket.typed_config.value)


def upstream_of(socket):
    return tls_pb2.UpstreamTlsContext.FromString(socket.typed_config.value)


def sans_of(context):
    validation = context.common_tls_context.combined_validation_context.default_validation_context
    return [item.matcher for item in validation.match_typed_subject_alt_names]


class TestDownstream:
    context = downstream_of(tls.downstream(tls.trust_domain_sans((TD, OLD))))

    def test_p1_both_kinds_of_resumption_are_off(self):
        assert self.context.disable_stateless_session_resumption is True
        assert self.context.disable_stateful_session_resumption is True

    def test_client_certificate_is_required(self):
        assert self.context.require_client_certificate.value is True

    def test_versions(self):
        params = self.context.common_tls_context.tls_params
        assert params.tls_minimum_protocol_version == 3  # TLSv1_2
        assert params.tls_maximum_protocol_version == 4  # TLSv1_3

    def test_mesh_tokens_are_not_advertised(self):
        assert list(self.context.common_tls_context.alpn_protocols) == ["h2", "http/1.1"]

    def test_trust_domains_end_in_a_slash(self):
        assert [san.prefix for san in sans_of(self.context)] == [
            "spiffe://cluster.local/",
            "spiffe://old.example/",
        ]

    def test_only_uri_names_count(self):
        validation = self.context.common_tls_context.combined_validation_context.default_validation_context
        assert {item.san_type for item in validation.match_typed_subject_alt_names} == {3}

    def test_p5_secrets_are_waited_for_and_have_one_source(self):
        common = self.context.common_tls_context
        sources = [
            *(item.sds_config for item in common.tls_certificate_sds_secret_configs),
            common.combined_validation_context.validation_context_sds_secret_config.sds_config,
        ]
        assert {source.SerializeToString() for source in sources} == {m.ads().SerializeToString()}
        for source in sources:
            assert source.HasField("ads")
            assert source.HasField("initial_fetch_timeout")
            assert source.initial_fetch_timeout.ToNanoseconds() == 0

    def test_empty_list_of_names_is_refused(self):
        with pytest.raises(m.RenderError, match="at least one name") as caught:
            tls.downstream(())
        assert caught.value.code is m.RenderCode.OPTION


class TestUpstream:
    def test_names_are_exact_sorted_and_unique(self):
        context = upstream_of(
            tls.upstream(["spiffe://b/x", "spiffe://a/x", "spiffe://b/x"], ["istio"], "sni")
        )
        assert [san.exact for san in sans_of(context)] == ["spiffe://a/x", "spiffe://b/x"]
        assert context.sni == "sni"
        assert list(context.common_tls_context.alpn_protocols) == ["istio"]

    def test_no_client_side_session_cache(self):
        context = upstream_of(tls.upstream(["spiffe://a/x"], [], ""))
        assert context.HasField("max_session_keys")
        assert context.max_session_keys.value == 0

    def test_nobody_is_not_anybody(self):
        assert [san.exact for san in sans_of(upstream_of(tls.upstream([], [], "")))] == [m.NEVER_SAN]


def match(kind, value=""):
    return StringMatch(kind, value)


def test_p9_peers_of_a_handshake():
    peers = [
        match(MatchKind.EXACT, "spiffe://cluster.local/ns/a/sa/b"),
        match(MatchKind.PREFIX, "spiffe://old.example/ns/a/"),
    ]
    exact, prefix = tls.peer_sans(peers, (TD, OLD))
    assert exact.exact == "spiffe://cluster.local/ns/a/sa/b"
    assert prefix.prefix == "spiffe://old.example/ns/a/"


def test_p9_no_peer_is_nobody_and_not_everybody():
    assert [san.exact for san in tls.peer_sans([], (TD,))] == [m.NEVER_SAN]


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(match(MatchKind.EXACT, "spiffe://foreign/ns/a/sa/b"), id="foreign"),
        pytest.param(match(MatchKind.PREFIX, "spiffe://cluster.localx/"), id="look-alike"),
        pytest.param(match(MatchKind.PREFIX, "spiffe://clus"), id="shorter-than-a-trust-domain"),
        pytest.param(match(MatchKind.SUFFIX, "/sa/b"), id="suffix"),
        pytest.param(match(MatchKind.PRESENT), id="present"),
    ],
)
def test_p9_peers_outside_of_the_trust_domains_are_refused(peer):
    with pytest.raises(m.RenderError, match="does not lie within a trust domain") as caught:
        tls.peer_sans([peer], (TD,))
    assert caught.value.code is m.RenderCode.PREDICATE
