"""Inject or leave alone: one pure function, one code for each outcome.

Rows are tried in this order; the first that holds decides. `explicit` = the pod itself says so
(label `sidecar.istio.io/inject`, or the deprecated annotation of that name; the label wins).

===  ===========================================================  ======  =====================
row  condition                                                    result  code
===  ===========================================================  ======  =====================
 1   not a v1 Pod CREATE, or a subresource                        allow   not_applicable
 2   namespace on the hard exclusion list                         skip    system_namespace
 3   mirror pod, or owned by a Node                               skip    mirror_pod
 4   Windows                                                      skip    windows_pod *
 5   explicit "false"                                             skip    pod_opt_out
 6   explicit, neither true nor false                             deny    invalid_inject_value *
 7   namespace says disabled                                      skip    namespace_disabled
 8   never-selector matches, no explicit yes                      skip    never_selector
 9   nobody opted in                                              skip    not_selected
 10  hostNetwork                                                  skip    host_network *
 11  sidecar of another mesh                                      skip    foreign_sidecar *
===  ===========================================================  ======  =====================

Codes with * warn the client. An explicit yes that still ends in a skip always warns: its author
asked for something that does not happen. Later rows (uid clash, bad options, up to date) need the
rendered pod and are decided in `injector.core.inject`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from injector.core.options import INJECT
from mesh.errors import Code

PROXY, INIT = "istio-proxy", "istio-init"
NAMESPACE_LABEL = "istio-injection"
SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease", "local-path-storage"})
_FOREIGN = ("linkerd-proxy", "consul-dataplane", "envoy-sidecar", "kuma-sidecar")


class Outcome(enum.Enum):
    """What is done with the pod."""

    INJECT = "inject"
    SKIP = "skip"
    DENY = "deny"


class Reason(Code):
    """Why; the same word in the warning, audit annotation, Event, metric, status and CLI."""

    NOT_APPLICABLE = "not_applicable"
    SYSTEM_NAMESPACE = "system_namespace"
    MIRROR_POD = "mirror_pod"
    WINDOWS_POD = "windows_pod"
    POD_OPT_OUT = "pod_opt_out"
    INVALID_INJECT_VALUE = "invalid_inject_value"
    NAMESPACE_DISABLED = "namespace_disabled"
    NEVER_SELECTOR = "never_selector"
    NOT_SELECTED = "not_selected"
    HOST_NETWORK = "host_network"
    FOREIGN_SIDECAR = "foreign_sidecar"
    UID_CLASH = "uid_clash"
    GID_CLASH = "gid_clash"
    INVALID_OPTION = "invalid_option"
    POD_SECURITY = "pod_security"
    UP_TO_DATE = "up_to_date"
    INJECTED = "injected"
    REINJECTED = "reinjected"
    REPAIRED = "repaired"


@dataclass(frozen=True, slots=True)
class Decision:
    """An outcome with its one reason.

    Attributes:
        message: one sentence for people: what was found and what to do.
        warn: send `message` to the client as an API warning.
    """

    outcome: Outcome
    reason: Reason
    message: str
    warn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Mesh-wide choices about who is injected.

    Attributes:
        namespaces_by_default: inject pods of namespaces that say nothing.
        never: label selectors (matchLabels); any match is a no, unless the pod says yes.
        always: label selectors; any match is a yes for pods that say nothing.
        excluded_namespaces: beside the system namespaces, e.g. the one of the control plane.
    """

    namespaces_by_default: bool = False
    never: tuple[Mapping[str, str], ...] = ()
    always: tuple[Mapping[str, str], ...] = ()
    excluded_namespaces: frozenset[str] = frozenset()


def decide(
    pod: Mapping[str, Any], namespace: str, namespace_labels: Mapping[str, str], selection: Selection
) -> Decision:
    """Rows 2 to 11 of the table, for the raw JSON of a pod that is being created."""
    labels = _labels(pod)
    explicit = _explicit(pod)
    wants = explicit == "true"
    refused = _excluded(pod)
    if namespace in SYSTEM_NAMESPACES | selection.excluded_namespaces:
        refused = _skip(
            Reason.SYSTEM_NAMESPACE,
            f"namespace {namespace} is never injected: the cluster's own services live there",
        )
    if refused is None and explicit == "false":
        return _skip(Reason.POD_OPT_OUT, f"the pod says {INJECT}=false")
    if refused is None and explicit not in {"", "true"}:
        return Decision(
            Outcome.DENY,
            Reason.INVALID_INJECT_VALUE,
            f'{INJECT} is {explicit[:40]!r}; write "true" or "false" (in quotes), or leave it out',
            warn=True,
        )
    if refused is None:
        refused = _unselected(labels, namespace, namespace_labels, selection, wants=wants) or _unfit(pod)
    if refused is None:
        return Decision(Outcome.INJECT, Reason.INJECTED, "the sidecar is added")
    if wants and not refused.warn:
        return Decision(
            refused.outcome,
            refused.reason,
            f"not injected although the pod asks: {refused.message}",
            warn=True,
        )
    return refused


def _skip(reason: Reason, message: str, *, warn: bool = False) -> Decision:
    return Decision(Outcome.SKIP, reason, message, warn)


def _labels(pod: Mapping[str, Any]) -> Mapping[str, str]:
    return (pod.get("metadata") or {}).get("labels") or {}


def _explicit(pod: Mapping[str, Any]) -> str:
    """The pod's own word, lower case; the label is read first, `""` when there is none."""
    meta = pod.get("metadata") or {}
    for owner in (meta.get("labels") or {}, meta.get("annotations") or {}):
        if INJECT in owner:
            return str(owner[INJECT]).strip().lower() or "(empty)"
    return ""


def _excluded(pod: Mapping[str, Any]) -> Decision | None:
    meta, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    owners: Sequence[Mapping[str, Any]] = meta.get("ownerReferences") or ()
    if "kubernetes.io/config.mirror" in (meta.get("annotations") or {}) or any(
        o.get("kind") == "Node" for o in owners
    ):
        return _skip(Reason.MIRROR_POD, "a static pod is run by its node whatever the API server says")
    if _is_windows(spec):
        return _skip(Reason.WINDOWS_POD, "the proxy runs on Linux only", warn=True)
    return None


def _is_windows(spec: Mapping[str, Any]) -> bool:
    if (spec.get("os") or {}).get("name") == "windows":
        return True
    if (spec.get("nodeSelector") or {}).get("kubernetes.io/os") == "windows":
        return True
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms: Sequence[Mapping[str, Any]] = required.get("nodeSelectorTerms") or ()
    # Terms are alternatives: a Windows node is certain only when each of them asks for one.
    return bool(terms) and all(
        any(
            e.get("key") == "kubernetes.io/os"
            and e.get("operator") == "In"
            and e.get("values") == ["windows"]
            for e in term.get("matchExpressions") or ()
        )
        for term in terms
    )


def _unselected(
    labels: Mapping[str, str],
    namespace: str,
    namespace_labels: Mapping[str, str],
    selection: Selection,
    *,
    wants: bool,
) -> Decision | None:
    said = namespace_labels.get(NAMESPACE_LABEL, "")
    if said and said != "enabled":
        return _skip(Reason.NAMESPACE_DISABLED, f"namespace {namespace} is labelled {NAMESPACE_LABEL}={said}")
    if wants:
        return None
    for selector in selection.never:
        if _matches(selector, labels):
            return _skip(
                Reason.NEVER_SELECTOR, f"the pod's labels match the never-inject selector {dict(selector)}"
            )
    if (
        said == "enabled"
        or selection.namespaces_by_default
        or any(_matches(s, labels) for s in selection.always)
    ):
        return None
    return _skip(
        Reason.NOT_SELECTED,
        f"neither the pod nor namespace {namespace} asks for a sidecar; next: kubectl label namespace"
        f" {namespace} {NAMESPACE_LABEL}=enabled",
    )


def _unfit(pod: Mapping[str, Any]) -> Decision | None:
    spec = pod.get("spec") or {}
    if spec.get("hostNetwork"):
        return _skip(
            Reason.HOST_NETWORK,
            "hostNetwork is true: capture rules would redirect the whole node's traffic",
            warn=True,
        )
    names = {c.get("name") for key in ("containers", "initContainers") for c in spec.get(key) or ()}
    foreign = sorted(names & set(_FOREIGN))
    if foreign:
        return _skip(
            Reason.FOREIGN_SIDECAR, f"container {foreign[0]} is the sidecar of another mesh", warn=True
        )
    return None


def _matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and all(labels.get(k) == v for k, v in selector.items())
