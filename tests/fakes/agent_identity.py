"""Identities for the agent's servers: snapshots and secrets from a test authority, on the wall clock."""

from __future__ import annotations

import datetime as dt

from mesh.envoy.resources import SDS_ROOTS, SDS_SVID, ResourceSet
from mesh.envoy.secrets import roots_secret, svid_secret
from nodeagent.cache import WorkloadCache
from nodeagent.core.snapshot import IdentitySnapshot, Svid, TrustBundle
from tests.fakes.ca_factory import Hierarchy, make_hierarchy

WEB = "/ns/demo/sa/web"


def now() -> dt.datetime:
    """The wall clock: Envoy and OpenSSL have no other."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def authority() -> Hierarchy:
    return make_hierarchy(now=now())


def identity(
    ca: Hierarchy,
    *,
    path: str = WEB,
    roots: tuple[bytes, ...] | None = None,
    lifetime: dt.timedelta = dt.timedelta(hours=1),
) -> IdentitySnapshot:
    """A fresh key and leaf each time."""
    start = now() - dt.timedelta(minutes=2)
    leaf = ca.leaf(path, not_before=start, not_after=now() + lifetime)
    certificate = leaf.certificate
    return IdentitySnapshot(
        svid=Svid(
            spiffe_id=ca.spiffe_id(path),
            chain_der=leaf.chain,
            key_pkcs8=leaf.key_pkcs8,
            serial=f"{certificate.serial_number:x}",
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        ),
        bundle=TrustBundle(trust_domain=ca.trust_domain, roots_der=roots or ca.roots),
    )


def secrets_of(snapshot: IdentitySnapshot) -> ResourceSet:
    resources = []
    if snapshot.svid is not None:
        resources.append(svid_secret(SDS_SVID, snapshot.svid.chain_der, snapshot.svid.key_pkcs8))
    if snapshot.bundle is not None:
        resources.append(roots_secret(SDS_ROOTS, snapshot.bundle.roots_der))
    return ResourceSet(resources)


def publish(cache: WorkloadCache, snapshot: IdentitySnapshot) -> IdentitySnapshot:
    cache.publish_identity(snapshot, secrets_of(snapshot))
    return snapshot
