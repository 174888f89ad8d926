"""The contents of a file-mode directory over time: last good objects, and what is wrong now.

Pure: the shell (`nodeagent.files`) brings the texts of files that changed. The rules:

- a document that is refused leaves its last good form in force; other documents are not held up;
- a file that is not YAML leaves everything that was in it in force;
- while a document cannot even be identified, nothing of its file is removed: the missing object may be
  the one that cannot be read;
- an object is removed when its document or its file is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mesh.meshconfig import MeshConfig
from mesh.policy.effective import Finding, ObjectRef, Severity
from mesh.policy.model import Policy
from mesh.policy.parse import parse_policy
from mesh.spiffe import TrustDomain
from mesh.topology import Service
from mesh.yamldoc import Document, YamlError, load_documents
from nodeagent.core.documents import (
    DEFAULT_TRUST_DOMAIN,
    DocumentKey,
    KeySetSpec,
    ServiceSpec,
    Spec,
    WorkloadSpec,
    identify,
    is_policy,
    parse_document,
)
from nodeagent.core.fields import DocumentCode

DEFAULT_MESH: Final = MeshConfig(trust_domain=TrustDomain(DEFAULT_TRUST_DOMAIN))
STAYS: Final = "what was good before stays in force"


@dataclass(frozen=True, slots=True)
class FileError:
    """A file that could not be read as text; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """An object in force.

    Attributes:
        file: the file that it was written in, relative to the directory.
        place: `file:line` of its document when it was last good.
    """

    key: DocumentKey
    value: Spec | Policy
    file: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that a directory or a cluster says, as one consistent state.

    Attributes:
        workloads, services, key_sets, policies: in force, in a stable order. A workload without an
            address cannot be rendered yet.
        known_services: services whose endpoints are known already (Kubernetes).
        files: file of each object of ours, since documents name other files relative to it.
        places: `file:line` of each object of ours.
        findings: all that is wrong or noteworthy now.
    """

    mesh: MeshConfig = DEFAULT_MESH
    workloads: tuple[WorkloadSpec, ...] = ()
    services: tuple[ServiceSpec, ...] = ()
    known_services: tuple[Service, ...] = ()
    key_sets: tuple[KeySetSpec, ...] = ()
    policies: tuple[Policy, ...] = ()
    files: Mapping[DocumentKey, str] = field(default_factory=dict)
    places: Mapping[DocumentKey, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _File:
    objects: tuple[Loaded, ...] = ()
    findings: tuple[Finding, ...] = ()


class Directory:
    """Applies changed files and answers with the world as it is in force."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def update(self, changed: Mapping[str, str | FileError | None]) -> World:
        """Apply files that changed.

        Args:
            changed: text by name relative to the directory; None for a file that is gone.
        """
        for name, text in changed.items():
            if text is None:
                self._files.pop(name, None)
            else:
                self._files[name] = _read(name, text, self._files.get(name, _File()))
        return self._merge()

    def _merge(self) -> World:
        findings = [finding for name in sorted(self._files) for finding in self._files[name].findings]
        chosen: dict[DocumentKey, Loaded] = {}
        for name in sorted(self._files):
            for item in self._files[name].objects:
                # There is one Mesh, whatever its name.
                key = DocumentKey("Mesh", "", "") if isinstance(item.value, MeshConfig) else item.key
                first = chosen.setdefault(key, item)
                if first is not item:
                    findings.append(
                        _clash(item, f"is written twice, first at {first.place}; this one is ignored")
                    )
        values, clashes = _without_clashes(list(chosen.values()))
        findings += clashes
        return World(
            mesh=next((x.value for x in values if isinstance(x.value, MeshConfig)), DEFAULT_MESH),
            workloads=tuple(x.value for x in values if isinstance(x.value, WorkloadSpec)),
            services=tuple(x.value for x in values if isinstance(x.value, ServiceSpec)),
            key_sets=tuple(x.value for x in values if isinstance(x.value, KeySetSpec)),
            policies=tuple(
                x.value
                for x in values
                if not isinstance(x.value, (MeshConfig, WorkloadSpec, ServiceSpec, KeySetSpec))
            ),
            files={x.key: x.file for x in values},
            places={x.key: x.place for x in values},
            findings=tuple(findings),
        )


def _read(name: str, text: str | FileError, before: _File) -> _File:
    kept = f"; {STAYS}" if before.objects else ""
    if isinstance(text, FileError):
        return _File(before.objects, (_file_finding(DocumentCode.FILE, name, name, text.reason + kept),))
    try:
        documents = load_documents(text, name)
    except YamlError as error:
        place = f"{error.source}:{error.line}"
        message = error.public.removeprefix(f"{place}: ")
        return _File(before.objects, (_file_finding(DocumentCode.YAML, name, place, message + kept),))
    good: list[Loaded] = []
    findings: list[Finding] = []
    keep: set[DocumentKey] = set()
    known = {item.key: item for item in before.objects}
    for document in documents:
        key = identify(document)
        value, remarks = _parse(document)
        if value is not None and key is not None:
            good.append(Loaded(key, value, name, document.where()))
        elif key in known:
            keep.add(key)
        else:
            # Kind or name may be what is broken: nothing of the file is given up meanwhile.
            keep.update(known)
        stays = value is None and bool(known)
        findings += [_with_note(r) if stays and r.severity is Severity.ERROR else r for r in remarks]
    present = {item.key for item in good}
    good += [known[key] for key in known if key in keep and key not in present]
    return _File(tuple(good), tuple(findings))


def _parse(document: Document) -> tuple[Spec | Policy | None, tuple[Finding, ...]]:
    if is_policy(document):
        parsed = parse_policy(document.data, source=document.source, line_of=document.line_of)
        return parsed.policy, parsed.findings
    return parse_document(document)


def _with_note(finding: Finding) -> Finding:
    return replace(finding, message=f"{finding.message}; {STAYS}")


def _file_finding(code: DocumentCode, name: str, place: str, message: str) -> Finding:
    ref = ObjectRef("file", "", name, source=place)
    return Finding(code, Severity.ERROR, ref, "", message, place)


def _clash(
    item: Loaded, message: str, severity: Severity = Severity.ERROR, where: str = "metadata"
) -> Finding:
    ref = ObjectRef(item.key.kind, item.key.namespace, item.key.name, source=item.place)
    return Finding(DocumentCode.DUPLICATE, severity, ref, where, f"{item.key.kind} {message}", item.place)


def _without_clashes(values: Iterable[Loaded]) -> tuple[list[Loaded], list[Finding]]:
    """Leave out what two objects cannot both be: the same host, uid, or address of keys."""
    kept: list[Loaded] = []
    findings: list[Finding] = []
    unique: dict[tuple[str, str], Loaded] = {}
    addresses: dict[tuple[str, int], Loaded] = {}
    for item in values:
        if isinstance(item.value, ServiceSpec):
            what, value = "host", item.value.host
        elif isinstance(item.value, WorkloadSpec):
            what, value = "uid", item.value.workload.uid
        elif isinstance(item.value, KeySetSpec):
            what, value = "address", item.value.address
        else:
            kept.append(item)
            continue
        first = unique.setdefault((what, value), item)
        if first is not item:
            message = f"has the {what} {value} of the one at {first.place}; this one is ignored"
            where = "spec" if what == "address" else f"spec.{what}"
            findings.append(_clash(item, message, where=where))
            continue
        kept.append(item)
        findings += _address_clashes(item, addresses)
    return kept, findings


def _address_clashes(item: Loaded, addresses: dict[tuple[str, int], Loaded]) -> list[Finding]:
    if not isinstance(item.value, WorkloadSpec):
        return []
    workload = item.value.workload
    found: list[Finding] = []
    for port in workload.ports:
        first = addresses.setdefault((workload.address, port.number), item)
        if first is not item:
            message = (
                f"has the address {workload.address}:{port.number} of the one at {first.place}; only one"
                " proxy can bind it"
            )
            found.append(_clash(item, message, Severity.WARNING, "spec.address"))
    return found
