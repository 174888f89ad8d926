"""Names: what a secret may be asked by, in which order resources go out, and whom a refusal names."""

from __future__ import annotations

import enum

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

from mesh.envoy.resources import (
    EXTENSION_CONFIG,
    SDS_ALL_BUNDLES,
    SDS_ROOTS,
    SDS_SVID,
    SECRET,
    Resource,
)
from mesh.spiffe import SCHEME, SpiffeId, SpiffeIdError
from nodeagent.core.snapshot import WorkloadSnapshot

_CANONICAL = frozenset({SDS_SVID, SDS_ROOTS, SDS_ALL_BUNDLES})


class SecretName(enum.Enum):
    """What the name of a secret means to this workload."""

    OWN = "own"  # one that it may have, now or later
    FOREIGN = "foreign"  # a SPIFFE ID or trust domain that is not its own (F-71)
    UNKNOWN = "unknown"  # no such secret is ever served here (S-14)


def find(snapshot: WorkloadSnapshot, type_url: str, name: str) -> Resource | None:
    """The resource that answers a name; its own name may differ when the workload asked by an alias.

    A secret may also be asked for by SPIFFE ID: the workload's own ID means its SVID, its trust
    domain's ID means the roots.
    """
    resources = snapshot.secrets if type_url == SECRET else snapshot.config
    if resources is None:
        return None
    of_type = resources.of_type(type_url)
    found = of_type.get(name)
    if found is not None or type_url != SECRET or not name.startswith(SCHEME):
        return found
    svid, bundle = snapshot.identity.svid, snapshot.identity.bundle
    if svid is not None and name == str(svid.spiffe_id):
        return of_type.get(SDS_SVID)
    if bundle is not None and name == str(bundle.trust_domain.id):
        return of_type.get(SDS_ROOTS)
    return None


def judge_secret(snapshot: WorkloadSnapshot, name: str) -> SecretName | None:
    """What a secret's name means; None while the own identity is not known."""
    if name in _CANONICAL or name in snapshot.secrets.of_type(SECRET):
        return SecretName.OWN
    try:
        wanted = SpiffeId.parse(name)
    except SpiffeIdError:
        return SecretName.UNKNOWN
    svid, bundle = snapshot.identity.svid, snapshot.identity.bundle
    if wanted.is_trust_domain:
        own = bundle.trust_domain.id if bundle is not None else None
    else:
        own = svid.spiffe_id if svid is not None else None
    if own is None:
        return None
    return SecretName.OWN if wanted == own and name == str(own) else SecretName.FOREIGN


def under_name(resource: Resource, name: str) -> Resource:
    """The resource as an answer to `name`: Envoy refuses a secret that bears another (S-10)."""
    if resource.name == name:
        return resource
    message = secret_pb2.Secret.FromString(resource.body)
    message.name = name
    return Resource(resource.type_url, name, resource.version, message.SerializeToString(deterministic=True))


def send_order(type_url: str, name: str) -> tuple[int, str]:
    """Sort key of resources of one type that travel one by one.

    Roots go before the leaf that needs them (S-18). Deny rules go before allow rules, so that no allow
    rule is in force without the deny rule that came with it. Token validation goes last: new rules that
    ask for a token then meet the old validation, which knows no such token, and refuse.
    """
    if type_url == SECRET:
        leaf = name == SDS_SVID or "/" in name.removeprefix(SCHEME)
        return (1 if leaf else 0, name)
    if type_url == EXTENSION_CONFIG:
        rank = 0 if "deny" in name else 2 if "jwt" in name else 1
        return (rank, name)
    return (0, name)


def named_in(message: str, names: frozenset[str]) -> frozenset[str]:
    """Which resources a refusal speaks of; empty when it names none.

    Envoy writes `Error adding/updating listener(s) a: reason` or `cluster(s) a: reason, b: reason`.
    Only the names of the refused response are looked for, each right after the preamble or a separator.
    """
    preamble, found, rest = message.partition("(s) ")
    if not found or not preamble.startswith("Error adding/updating"):
        return frozenset()
    return frozenset(
        name
        for name in names
        if rest.startswith(f"{name}: ") or f", {name}: " in rest or f"\n{name}: " in rest
    )
