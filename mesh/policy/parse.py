"""CRD dict -> model: everything that is wrong at once, each with field path, line and what is allowed.

Takes plain data (from YAML, JSON or an API server). Accepts `security.istio.io/v1` and `v1beta1`.
Stricter than Istio where Istio would ignore something in silence: unknown fields, typos in keys and
objects that cannot do what they say are refused (`docs/policy.md` lists the differences).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.policy import rules
from mesh.policy.codes import PolicyCode, PolicyError
from mesh.policy.effective import Finding, MtlsMode, ObjectRef
from mesh.policy.model import (
    API_VERSIONS,
    AUTHORIZATION_POLICY,
    GROUP,
    KINDS,
    PEER_AUTHENTICATION,
    REQUEST_AUTHENTICATION,
    PeerAuthentication,
    Policy,
    PolicyMeta,
    Selector,
)
from mesh.policy.parse_authz import authorization_policy
from mesh.policy.parse_jwt import request_authentication
from mesh.policy.reader import LineOf, Node, Report, nearest, show
from mesh.policy.values import check_label, is_namespace, is_object_name, port_number

__all__ = ["Parsed", "PolicyCode", "PolicyError", "is_policy", "parse_policy"]

DRY_RUN: Final = "istio.io/dry-run"
_MAX_LABELS: Final = 32
_MAX_PORTS: Final = 256
_MAX_TARGETS: Final = 16
_MODES: Final = {mode.value: mode for mode in MtlsMode}
_BOOLEANS: Final = {"true": True, "false": False}
_UNKNOWN: Final = "?"


@dataclass(frozen=True, slots=True)
class Parsed:
    """What came of one object.

    Attributes:
        policy: None when the object was refused.
        findings: errors (only without a policy) and warnings, in the order of the fields read.
    """

    policy: Policy | None
    findings: tuple[Finding, ...] = ()

    def unwrap(self) -> Policy:
        """The policy.

        Raises:
            PolicyError: when the object was refused, with every finding.
        """
        if self.policy is None:
            raise PolicyError(self.findings)
        return self.policy


def is_policy(data: object) -> bool:
    """True when the object is of the policy API group, whatever its kind or version."""
    api_version = data.get("apiVersion") if isinstance(data, Mapping) else None
    return isinstance(api_version, str) and api_version.partition("/")[0] == GROUP


def parse_policy(data: Mapping[str, Any], *, source: str = "", line_of: LineOf | None = None) -> Parsed:
    """Parse one policy object.

    Args:
        data: the object: `apiVersion`, `kind`, `metadata`, `spec`; `status` is not looked at.
        source: file name for messages and `ObjectRef.source`; empty for an API server's objects.
        line_of: line number of a field path, if known.
    """
    report = Report(_ref(data, source, line_of), source=source, line_of=line_of)
    root = Node(report, (), data)
    top = root.fields("apiVersion", "kind", "metadata", "spec", "status")
    if not _check_kind(root, top):
        return Parsed(None, tuple(report.findings))
    meta, dry_run = _metadata(root, top.get("metadata"))
    spec = top.get("spec", root.child("spec", {}))
    kind = report.ref.kind
    policy: Policy
    if dry_run and kind != AUTHORIZATION_POLICY:
        report.error(
            ("metadata", "annotations", DRY_RUN),
            PolicyCode.UNSUPPORTED,
            f"a {kind} cannot be tried out: it would be in force; remove the annotation",
        )
    if kind == PEER_AUTHENTICATION:
        policy = _peer_authentication(spec, meta)
    elif kind == REQUEST_AUTHENTICATION:
        policy = request_authentication(spec, _selected(spec, meta))
    else:
        policy = authorization_policy(spec, _selected(spec, meta), dry_run=dry_run)
    return Parsed(None if report.failed else policy, tuple(report.findings))


def _ref(data: Mapping[str, Any], source: str, line_of: LineOf | None) -> ObjectRef:
    """The best name of an object that may be broken."""
    metadata = data.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    kind = data.get("kind")
    generation = metadata.get("generation")

    def name(value: object) -> str:
        return show(value).strip('"') if isinstance(value, str) and value else _UNKNOWN

    place = f"{source}:{line_of(())}" if line_of is not None else source
    return ObjectRef(
        name(kind),
        name(metadata.get("namespace")),
        name(metadata.get("name")),
        generation if isinstance(generation, int) and not isinstance(generation, bool) else 0,
        place,
    )


def _check_kind(root: Node, top: dict[str, Node]) -> bool:
    good = True
    for field, allowed in (("apiVersion", API_VERSIONS), ("kind", KINDS)):
        node = top.get(field)
        if node is None:
            root.error(PolicyCode.MISSING, f"{field} is missing; allowed are {', '.join(allowed)}")
            good = False
        elif node.value not in allowed:
            word = node.value if isinstance(node.value, str) else ""
            node.error(
                PolicyCode.NOT_A_POLICY,
                f"found {show(node.value)}, allowed are {', '.join(allowed)}{nearest(word, allowed)}",
            )
            good = False
    return good


def _metadata(root: Node, node: Node | None) -> tuple[PolicyMeta, bool]:
    """Name, namespace, age and dry run; other metadata is the API server's business."""
    ref = root.report.ref
    if node is None or not isinstance(node.value, Mapping):
        root.child("metadata", None).error(PolicyCode.MISSING, "metadata with name and namespace is missing")
        return PolicyMeta(ref=ref), False
    entries = node.mapping() or {}
    for field, legal, form in (
        ("name", is_object_name, "a-z 0-9 - . and at most 253"),
        ("namespace", is_namespace, "a-z 0-9 - and at most 63"),
    ):
        child = entries.get(field)
        if child is None:
            node.child(field, None).error(PolicyCode.MISSING, f"metadata.{field} is missing")
            continue
        text = child.text(most=253)
        if text is not None and not legal(text):
            child.error(PolicyCode.BAD_VALUE, f"found {show(text)}, allowed are {form} characters")
    created = _timestamp(entries["creationTimestamp"]) if entries.get("creationTimestamp") else None
    dry_run = False
    annotations = entries.get("annotations")
    if annotations is not None:
        mark = (annotations.mapping() or {}).get(DRY_RUN)
        dry_run = bool(mark is not None and mark.choice(_BOOLEANS))
    return PolicyMeta(ref=ref, created=created), dry_run


def _timestamp(node: Node) -> dt.datetime | None:
    """RFC 3339, as API servers write it; null in objects that were never stored."""
    if node.value is None:
        return None
    text = node.text(most=64)
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        node.error(PolicyCode.BAD_VALUE, f"found {show(text)}, allowed is a time like 2026-01-31T12:00:00Z")
        return None
    return moment.astimezone(dt.UTC)


def _selected(spec: Node, meta: PolicyMeta) -> PolicyMeta:
    """`selector` XOR `targetRefs`; the latter never concerns a sidecar."""
    entries = spec.value if isinstance(spec.value, Mapping) else {}
    selector = None
    if "selector" in entries:
        selector = _selector(spec.child("selector", entries["selector"]))
    targets = [field for field in ("targetRefs", "targetRef") if field in entries]
    for field in targets:
        node = spec.child(field, entries[field])
        if "selector" in entries or len(targets) > 1:
            node.breaks(rules.ONE_TARGET)
        _targets(node if field == "targetRefs" else spec.child(field, [entries[field]]))
        node.warn(
            PolicyCode.TARGET_REFS,
            f"{meta.ref.kind} with {field} concerns gateways and waypoints and does nothing for sidecars:"
            " use selector to reach workloads",
        )
    return dataclasses.replace(meta, selector=selector, gateway_only=bool(targets))


def _selector(node: Node) -> Selector | None:
    """`matchLabels`; an empty selector selects everything, as no selector does."""
    entries = node.fields("matchLabels")
    labels_node = entries.get("matchLabels")
    if labels_node is None:
        return None
    labels = []
    for key, child in (labels_node.mapping() or {}).items():
        value = child.text(most=63, may_be_empty=True)
        if value is not None and check_label(child, key, value):
            labels.append((key, value))
    if len(labels) > _MAX_LABELS:
        labels_node.error(
            PolicyCode.TOO_MANY, f"found {len(labels)} labels, allowed are at most {_MAX_LABELS}"
        )
    return Selector(tuple(sorted(labels))) if labels else None


def _targets(node: Node) -> None:
    for target in node.items(most=_MAX_TARGETS):
        fields = target.fields("group", "kind", "name", "namespace")
        for name in ("kind", "name"):
            if name not in fields:
                target.error(PolicyCode.MISSING, f"{name} of the target is missing")
        for name, child in fields.items():
            child.text(most=253, may_be_empty=name in {"group", "namespace"})


def _peer_authentication(spec: Node, meta: PolicyMeta) -> PeerAuthentication:
    fields = spec.fields("selector", "mtls", "portLevelMtls")
    selector = _selector(fields["selector"]) if "selector" in fields else None
    mode = _mtls(fields["mtls"]) if "mtls" in fields else MtlsMode.UNSET
    ports: dict[int, MtlsMode] = {}
    if "portLevelMtls" in fields:
        node = fields["portLevelMtls"]
        if selector is None:
            node.breaks(rules.PORTS_NEED_SELECTOR)
        entries = node.mapping() or {}
        if len(entries) > _MAX_PORTS:
            node.error(PolicyCode.TOO_MANY, f"found {len(entries)} ports, allowed are at most {_MAX_PORTS}")
            entries = {}
        for key, child in entries.items():
            number = port_number(child, key)
            port_mode = _mtls(child)
            if number is not None:
                ports[number] = port_mode
    return PeerAuthentication(
        meta=dataclasses.replace(meta, selector=selector),
        mode=mode,
        ports=tuple(sorted(ports.items(), key=lambda item: item[0])),
    )


def _mtls(node: Node) -> MtlsMode:
    """`{mode: ...}`; without a mode UNSET."""
    mode = node.fields("mode").get("mode")
    chosen = mode.choice(_MODES) if mode is not None else None
    return chosen or MtlsMode.UNSET
