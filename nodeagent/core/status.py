"""What the proxy said about each resource, keyed by content (P7).

An ECDS, RDS or SDS resource that was refused and is sent again with the same bytes is *accepted* by
Envoy while its old configuration stays in force. So a hash that was refused stays refused until other
bytes arrive. Listeners and clusters are validated anew each time: there an acceptance counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from mesh.envoy.resources import STATE_OF_THE_WORLD, ResourceSet

MAX_MESSAGE = 2000
"""Characters of a refusal that are kept; the text comes from outside."""

Key = tuple[str, str]
"""Type URL and resource name."""


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """One resource as the proxy sees it.

    Attributes:
        accepted: version (content hash) that was accepted last; None = none so far.
        refused: version that was refused last and has not been replaced; None = none.
        message: the proxy's own words for the refusal.
    """

    accepted: str | None = None
    refused: str | None = None
    message: str = ""


@lru_cache(maxsize=16_384)
def _accepted(version: str) -> ResourceStatus:
    """One object for all workloads that accepted the same bytes: a node has thousands of them."""
    return ResourceStatus(accepted=version)


_UNKNOWN: Final = ResourceStatus()


class StatusBook:
    """Acceptances and refusals of one workload's resources, over all its streams."""

    def __init__(self) -> None:
        self._status: dict[str, dict[str, ResourceStatus]] = {}

    def accept(self, type_url: str, name: str, version: str) -> None:
        """Record an ACK of these bytes, unless the same bytes were refused before (P7)."""
        named = self._status.setdefault(type_url, {})
        if named.get(name, _UNKNOWN).refused == version and type_url not in STATE_OF_THE_WORLD:
            return
        named[name] = _accepted(version)

    def refuse(self, type_url: str, name: str, version: str, message: str) -> None:
        """Record a NACK; what was accepted before stays in force in the proxy, and here."""
        named = self._status.setdefault(type_url, {})
        old = named.get(name, _UNKNOWN)
        accepted = None if old.accepted == version else old.accepted
        named[name] = replace(old, accepted=accepted, refused=version, message=message[:MAX_MESSAGE])

    def is_accepted(self, type_url: str, name: str, version: str) -> bool:
        """True when exactly these bytes were accepted and not refused since."""
        status = self._status.get(type_url, {}).get(name, _UNKNOWN)
        return status.accepted == version and status.refused is None

    def is_refused(self, type_url: str, name: str, version: str) -> bool:
        """True when exactly these bytes were refused, and no others have come since."""
        return self._status.get(type_url, {}).get(name, _UNKNOWN).refused == version

    def retain(self, types: frozenset[str], resources: ResourceSet) -> None:
        """Forget resources of these types that no longer exist."""
        for type_url in types.intersection(self._status):
            known = resources.of_type(type_url)
            named = self._status[type_url]
            self._status[type_url] = {name: named[name] for name in named if name in known}

    def view(self) -> Mapping[Key, ResourceStatus]:
        """A copy of the state, by type URL and name."""
        return MappingProxyType(
            {
                (type_url, name): status
                for type_url, named in self._status.items()
                for name, status in named.items()
            }
        )
