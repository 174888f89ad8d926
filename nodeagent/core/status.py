"""What the proxy said about each resource, keyed by content (P7).

An ECDS, RDS or SDS resource that was refused and is sent again with the same bytes is *accepted* by
Envoy while its old configuration stays in force. So a hash that was refused stays refused until other
bytes arrive. Listeners and clusters are validated anew each time: there an acceptance counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

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


class StatusBook:
    """Acceptances and refusals of one workload's resources, over all its streams."""

    def __init__(self) -> None:
        self._status: dict[Key, ResourceStatus] = {}

    def accept(self, type_url: str, name: str, version: str) -> None:
        """Record an ACK of these bytes, unless the same bytes were refused before (P7)."""
        old = self._status.get((type_url, name), ResourceStatus())
        if old.refused == version and type_url not in STATE_OF_THE_WORLD:
            return
        self._status[type_url, name] = ResourceStatus(accepted=version)

    def refuse(self, type_url: str, name: str, version: str, message: str) -> None:
        """Record a NACK; what was accepted before stays in force in the proxy, and here."""
        old = self._status.get((type_url, name), ResourceStatus())
        accepted = None if old.accepted == version else old.accepted
        self._status[type_url, name] = replace(
            old, accepted=accepted, refused=version, message=message[:MAX_MESSAGE]
        )

    def is_accepted(self, type_url: str, name: str, version: str) -> bool:
        """True when exactly these bytes were accepted and not refused since."""
        status = self._status.get((type_url, name))
        return status is not None and status.accepted == version and status.refused is None

    def retain(self, types: frozenset[str], resources: ResourceSet) -> None:
        """Forget resources of these types that no longer exist."""
        self._status = {
            key: status
            for key, status in self._status.items()
            if key[0] not in types or key[1] in resources.of_type(key[0])
        }

    def view(self) -> Mapping[Key, ResourceStatus]:
        """A copy of the state, by type URL and name."""
        return MappingProxyType(dict(self._status))
