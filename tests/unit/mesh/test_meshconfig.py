"""Mesh-wide options: the defaults are the strict ones."""

from __future__ import annotations

from mesh.meshconfig import ForwardClientCert, MeshConfig, PathNormalization
from mesh.spiffe import TrustDomain


def test_defaults_are_strict() -> None:
    config = MeshConfig(trust_domain=TrustDomain("cluster.local"))
    assert config.path_normalization is PathNormalization.DECODE_AND_MERGE_SLASHES
    assert config.forward_client_cert is ForwardClientCert.SANITIZE_SET
    assert config.trust_domains == (TrustDomain("cluster.local"),)


def test_the_own_trust_domain_comes_first() -> None:
    own, old = TrustDomain("new.example"), TrustDomain("old.example")
    assert MeshConfig(trust_domain=own, trust_domain_aliases=(old,)).trust_domains == (own, old)
