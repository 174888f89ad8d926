"""File mode: a directory becomes workloads, services, policies and key sets, live (docs/file-mode.md).

Events come from inotify, with a slow poll beside it, or a fast one in its place. A burst of events is
taken together: the directory is read when it has been quiet for a moment and no file is being written,
so that an editor or a copy in progress is never seen half done.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh import yamldoc
from mesh.errors import MeshError
from mesh.obs.logs import logger
from mesh.policy.effective import Finding, ObjectRef, Severity
from mesh.policy.jwks import MAX_BYTES as MAX_KEY_SET_BYTES
from mesh.policy.jwks import parse_key_set
from nodeagent import inotify
from nodeagent.core.directory import STAYS, Directory, FileError, World
from nodeagent.core.documents import DocumentKey, KeySetSpec, WorkloadSpec
from nodeagent.core.fields import DocumentCode
from nodeagent.tokens import TokenSource

SUFFIXES: Final = (".yaml", ".yml")
MAX_FILES: Final = 10_000
MAX_DIRECTORY_DEPTH: Final = 16
DEBOUNCE: Final = 0.05
MAX_SETTLE: Final = 1.0
POLL: Final = 2.0
POLL_WITHOUT_EVENTS: Final = 0.2

_log = logger("nodeagent.files")
_Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryState:
    """A directory, or a cluster, at one moment, as it is in force.

    Attributes:
        token_files: where each workload's token is, by uid of the workload.
        directories: where each workload's socket goes, by uid; the agent chooses for those not named.
        key_sets: canonical JSON by `JwtRule.keys_address`.
        findings: of documents and key sets.
    """

    world: World
    token_files: Mapping[str, TokenSource] = field(default_factory=dict)
    directories: Mapping[str, Path] = field(default_factory=dict)
    key_sets: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


class FileSource:
    """Reads a directory, and again whenever it changes.

    Args:
        root: the directory.
        debounce: seconds of quiet before a change is applied.
        use_inotify: False = poll only.
    """

    def __init__(self, root: Path, *, debounce: float = DEBOUNCE, use_inotify: bool = True) -> None:
        self.root = root
        self._debounce = debounce
        self._use_inotify = use_inotify
        self._directory = Directory()
        self._seen: dict[str, _Signature] = {}
        self._key_files: dict[Path, _Signature | None] = {}
        self._good_key_sets: dict[tuple[str, str], str] = {}
        self._too_many = False

    def load(self) -> DirectoryState:
        """Read what changed since the last call, the first time everything."""
        changed = self._changed_files()
        return self._state(self._directory.update(changed))

    def changed(self) -> bool:
        """True when `load` would find something new; costs one `stat` per file."""
        if any(_signature(path) != seen for path, seen in self._key_files.items()):
            return True
        now = {name: _signature(self.root / name) for name in self._names()}
        return {name: found for name, found in now.items() if found is not None} != self._seen

    async def run(self, apply: Callable[[DirectoryState], None]) -> None:
        """Watch until cancelled; `apply` gets each new state, the first one at once."""
        watch = inotify.open_inotify() if self._use_inotify else None
        events = _Events(watch)
        try:
            # Watches first, then the first look: nothing falls in between.
            self._watch_all(watch)
            apply(self.load())
            while True:
                await self._quiet(events)
                self._watch_all(watch)
                if self.changed():
                    apply(self.load())
        finally:
            events.close()

    async def _quiet(self, events: _Events) -> None:
        """Return when something may have changed and nothing moves any more."""
        if not await events.wait(POLL if events.live else POLL_WITHOUT_EVENTS) and not self.changed():
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + MAX_SETTLE
        while loop.time() < deadline:
            moved = await events.wait(self._debounce)
            if not moved and not events.writing:
                return

    def _watch_all(self, watch: inotify.Inotify | None) -> None:
        if watch is None:
            return
        for directory in [*self._directories(), *{path.parent for path in self._key_files}]:
            watch.add(directory)

    # --- reading ------------------------------------------------------------------------------------

    def _directories(self) -> list[Path]:
        found: list[Path] = []
        for base, names, _ in os.walk(self.root):
            path = Path(base)
            if len(path.relative_to(self.root).parts) >= MAX_DIRECTORY_DEPTH:
                names.clear()
            names[:] = sorted(name for name in names if not name.startswith("."))
            found.append(path)
        return found

    def _names(self) -> list[str]:
        """Files that count, relative to the root; hidden ones (an editor's, `..data`) do not."""
        found: list[str] = []
        for directory in self._directories():
            prefix = directory.relative_to(self.root)
            try:
                entries = sorted(path.name for path in directory.iterdir())
            except OSError:
                continue  # it went away while we looked: the next event says so
            found += [
                str(prefix / name) for name in entries if name.endswith(SUFFIXES) and not name.startswith(".")
            ]
        self._too_many = len(found) > MAX_FILES
        return found[:MAX_FILES]

    def _changed_files(self) -> dict[str, str | FileError | None]:
        changed: dict[str, str | FileError | None] = {}
        seen: dict[str, _Signature] = {}
        for name in self._names():
            path = self.root / name
            before = _signature(path)
            if before is None:
                continue
            seen[name] = before
            if self._seen.get(name) != before:
                changed[name] = _read_text(path)
                # Written to while it was read: look again at the next event.
                if _signature(path) != before:
                    seen[name] = (0, 0, 0, 0)
        changed |= dict.fromkeys(self._seen.keys() - seen.keys())
        self._seen = seen
        return changed

    def _state(self, world: World) -> DirectoryState:
        findings: list[Finding] = list(world.findings)
        if not self.root.is_dir():
            findings.append(_about_root(self.root, f"{self.root} is not a directory"))
        if self._too_many:
            findings.append(_about_root(self.root, f"more than {MAX_FILES} files; the rest is not read"))
        self._key_files = {}
        key_sets: dict[str, str] = {}
        for spec in world.key_sets:
            text = self._key_set(spec, world, findings)
            if text is not None:
                key_sets[spec.address] = text
        return DirectoryState(
            world=world,
            token_files={
                spec.workload.uid: self._beside(_key_of(spec), spec.token_file, world)
                for spec in world.workloads
            },
            key_sets=key_sets,
            findings=tuple(findings),
        )

    def _key_set(self, spec: KeySetSpec, world: World, findings: list[Finding]) -> str | None:
        key = DocumentKey("KeySet", "", spec.name)
        path = self._beside(key, spec.file, world)
        self._key_files[path] = _signature(path)
        remember = (spec.name, spec.address)
        try:
            parsed = parse_key_set(_read_bytes(path, MAX_KEY_SET_BYTES))
        except (OSError, MeshError) as error:
            kept = f"; {STAYS}" if remember in self._good_key_sets else "; tokens of this issuer are refused"
            reason = error.public if isinstance(error, MeshError) else f"cannot be read: {error.strerror}"
            findings.append(_about_key_set(spec, world, Severity.ERROR, f"{spec.file}: {reason}{kept}"))
            return self._good_key_sets.get(remember)
        findings += [
            _about_key_set(spec, world, Severity.WARNING, f"{spec.file}: left out: {dropped}")
            for dropped in parsed.dropped
        ]
        if parsed.had_private:
            message = f"{spec.file} holds a private key: replace the key, publish the public half only"
            findings.append(_about_key_set(spec, world, Severity.WARNING, message))
        self._good_key_sets[remember] = parsed.json
        return parsed.json

    def _beside(self, key: DocumentKey, name: str, world: World) -> Path:
        """A file named in a document, relative to the document's own file."""
        return Path(os.path.normpath(self.root / Path(world.files.get(key, "")).parent / name))


class _Events:
    """Readiness of an inotify descriptor, and which files are being written."""

    def __init__(self, watch: inotify.Inotify | None) -> None:
        self._watch = watch
        self._event = asyncio.Event()
        self._writing: set[tuple[Path | None, str]] = set()
        if watch is not None:
            asyncio.get_running_loop().add_reader(watch.fileno(), self._on_readable)

    @property
    def live(self) -> bool:
        """True when events come by themselves."""
        return self._watch is not None

    @property
    def writing(self) -> bool:
        """True while some file was changed and is not closed yet."""
        return bool(self._writing)

    async def wait(self, seconds: float) -> bool:
        """Wait for an event; False when none came."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True

    def close(self) -> None:
        """Stop listening."""
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()

    def _on_readable(self) -> None:
        if self._watch is None:
            return
        for event in self._watch.read():
            file = (event.directory, event.name)
            if event.mask & inotify.OVERFLOW:
                self._writing.clear()
            if event.mask & inotify.MODIFY and event.name.endswith(SUFFIXES):
                self._writing.add(file)
            elif event.mask & (inotify.CLOSE_WRITE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO):
                self._writing.discard(file)
            self._event.set()


def _key_of(spec: WorkloadSpec) -> DocumentKey:
    return DocumentKey("Workload", spec.workload.namespace, spec.workload.name)


def _signature(path: Path) -> _Signature | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read_bytes(path: Path, limit: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(limit + 1)


def _read_text(path: Path) -> str | FileError:
    try:
        return _read_bytes(path, yamldoc.MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        return FileError(f"is not UTF-8 text (byte {error.start})")
    except OSError as error:
        return FileError(f"cannot be read: {error.strerror}")


def _about_root(root: Path, message: str) -> Finding:
    place = str(root)
    return Finding(
        DocumentCode.FILE, Severity.ERROR, ObjectRef("directory", "", place, source=place), "", message, place
    )


def _about_key_set(spec: KeySetSpec, world: World, severity: Severity, message: str) -> Finding:
    place = world.files.get(DocumentKey("KeySet", "", spec.name), "")
    ref = ObjectRef("KeySet", "", spec.name, source=place)
    return Finding(DocumentCode.FILE, severity, ref, "spec.file", message, place)
