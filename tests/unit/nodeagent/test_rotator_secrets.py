"""The SDS secrets of a snapshot: one body per name, each the one that rendering it alone gives."""

from __future__ import annotations

from mesh.envoy.resources import SDS_ALL_BUNDLES, SDS_ROOTS, SDS_SVID, SECRET
from mesh.envoy.secrets import bundles_secret, roots_secret, svid_secret
from nodeagent.core.snapshot import IdentitySnapshot
from nodeagent.rotator import secrets_of
from tests.fakes import agent_identity


def test_s10_every_name_of_a_secret_has_the_body_that_it_would_have_alone() -> None:
    snapshot = agent_identity.identity(agent_identity.authority())
    assert snapshot.svid is not None
    assert snapshot.bundle is not None
    svid, bundle = snapshot.svid, snapshot.bundle
    roots = bundle.roots_der
    assert dict(secrets_of(snapshot).of_type(SECRET)) == {
        **{n: svid_secret(n, svid.chain_der, svid.key_pkcs8) for n in (SDS_SVID, str(svid.spiffe_id))},
        **{n: roots_secret(n, roots) for n in (SDS_ROOTS, str(bundle.trust_domain.id))},
        SDS_ALL_BUNDLES: bundles_secret(SDS_ALL_BUNDLES, {bundle.trust_domain: roots}),
    }


def test_the_secrets_of_a_bundle_are_shared_by_the_workloads_of_a_node() -> None:
    ca = agent_identity.authority()
    one, other = (
        secrets_of(IdentitySnapshot(bundle=agent_identity.identity(ca, path=path).bundle)).of_type(SECRET)
        for path in ("/ns/demo/sa/a", "/ns/demo/sa/b")
    )
    assert one.keys() == other.keys()
    assert all(one[name] is other[name] for name in one)
