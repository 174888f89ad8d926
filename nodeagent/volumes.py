"""The volumes of this node that are published, with their pods' tokens; kept over a restart.

Everything here runs on the agent's loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mesh.obs.logs import logger
from nodeagent.core.volume import Volume
from nodeagent.state import StateError, VolumeState
from nodeagent.tokens import MemoryToken

_log = logger("nodeagent.volumes")


@dataclass(frozen=True, slots=True)
class Held:
    """A published volume and the newest token of its pod; `directory` is its target."""

    volume: Volume
    token: MemoryToken
    directory: Path

    @classmethod
    def of(cls, volume: Volume, token: str = "") -> Held:
        """The volume with that token; empty when none has come yet."""
        return cls(volume, MemoryToken(_name(volume), token), Path(volume.target))


class Volumes:
    """What is published.

    Args:
        state: where it is kept over a restart.
        changed: called after volumes came or went (not for a fresh token).
    """

    def __init__(self, state: VolumeState, changed: Callable[[], None]) -> None:
        self._state = state
        self._changed = changed
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def restore(self) -> int:
        """Take over what an earlier agent published; returns how many volumes that are.

        A volume whose directory is gone has no reader any more: it is forgotten (G-10).

        Raises:
            StateError: the state directory cannot be used.
        """
        for volume, token in self._state.load():
            held = Held.of(volume, token)
            if held.directory.is_dir():
                self._held[volume.volume_id] = held
            else:
                self._state.remove(volume.volume_id)
        if self._held:
            _log.info("volumes taken over", volumes=len(self._held), with_tokens=self._state.keeps_tokens)
        self._changed()
        return len(self._held)

    def items(self) -> tuple[Held, ...]:
        """All volumes, in a stable order."""
        return tuple(self._held[key] for key in sorted(self._held))

    def get(self, volume_id: str) -> Held | None:
        """One volume."""
        return self._held.get(volume_id)

    def at(self, target: str) -> Held | None:
        """The volume in that directory."""
        return next((held for held in self._held.values() if held.volume.target == target), None)

    def put(self, volume: Volume, token: str) -> Held:
        """Take a published volume, or a fresh token of one that is known."""
        held = self._held.get(volume.volume_id)
        known = held is not None and held.volume == volume
        if held is None or not known:
            held = self._held[volume.volume_id] = Held.of(volume)
        if held.token.replace(token):
            self._save(volume, token)
        if not known:
            self._changed()
        return held

    def drop(self, volume_id: str) -> Held | None:
        """Forget a volume; None when it is not known."""
        held = self._held.pop(volume_id, None)
        self._state.remove(volume_id)
        if held is not None:
            self._changed()
        return held

    def _save(self, volume: Volume, token: str) -> None:
        try:
            self._state.save(volume, token)
        except StateError as error:
            # The pod is served all the same (G-07); only a restart would know less.
            _log.error("a volume's state is not kept", workload=_name(volume), error=error)


def _name(volume: Volume) -> str:
    return f"{volume.namespace}/{volume.pod}"
