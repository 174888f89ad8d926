"""Named, versioned, serialised xDS resources and immutable sets of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

_PREFIX: Final = "type.googleapis.com/"
LISTENER: Final = _PREFIX + "envoy.config.listener.v3.Listener"
CLUSTER: Final = _PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT: Final = _PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
ROUTE: Final = _PREFIX + "envoy.config.route.v3.RouteConfiguration"
EXTENSION_CONFIG: Final = _PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
SECRET: Final = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

TYPE_URLS: Final = frozenset({LISTENER, CLUSTER, ENDPOINT, ROUTE, EXTENSION_CONFIG, SECRET})
STATE_OF_THE_WORLD: Final = frozenset({LISTENER, CLUSTER})
"""Types whose SotW response must hold every resource: absence is deletion (xDS protocol)."""

SDS_SVID: Final = "default"
SDS_ROOTS: Final = "ROOTCA"
SDS_ALL_BUNDLES: Final = "ALL"


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource. `body` is the serialised message (the `value` of its Any); may hold a key."""

    type_url: str
    name: str
    version: str
    body: bytes = field(repr=False)

    @classmethod
    def of(cls, type_url: str, name: str, body: bytes) -> Resource:
        """A resource whose version is the hash of its content: equal bytes, equal version."""
        return cls(type_url, name, hashlib.sha256(body).hexdigest()[:16], body)


class ResourceSet:
    """An immutable set of resources by type and name."""

    __slots__ = ("_by_type",)

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        by_type: dict[str, dict[str, Resource]] = {}
        for resource in resources:
            named = by_type.setdefault(resource.type_url, {})
            if resource.name in named:
                # A duplicate name in one response is NACKed by Envoy as a whole (S-08).
                raise ValueError(f"two resources named {resource.name!r} of type {resource.type_url}")
            named[resource.name] = resource
        self._by_type = {url: MappingProxyType(named) for url, named in by_type.items()}

    def of_type(self, type_url: str) -> Mapping[str, Resource]:
        """Resources of a type, by name; empty when there are none."""
        return self._by_type.get(type_url, MappingProxyType({}))

    def merged(self, other: ResourceSet) -> ResourceSet:
        """The union of two sets with no name in common."""
        return ResourceSet([*self, *other])

    def __iter__(self) -> Iterator[Resource]:
        for named in self._by_type.values():
            yield from named.values()

    def __len__(self) -> int:
        return sum(len(named) for named in self._by_type.values())
