"""Inject or leave alone: one pure function, one code for each outcome.

Rows are tried in this order; the first that holds decides. `explicit` = the pod itself says so
(label `sidecar.istio.io/inject`, or the deprecated annotation of that name; the label wins). An annotation
cannot *enable* injection where the namespace does not: the API server selects by labels only.

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
 9   nobody opted in, or another revision is meant                skip    not_selected
 10  hostNetwork                                                  skip    host_network *
 11  sidecar of another mesh                                      skip    foreign_sidecar *
===  ===========================================================  ======  =====================

Rows 10 and 11 deny in strict namespaces. Codes with * warn the client. An explicit yes that still ends
in a skip always warns: its author asked for something that does not happen. Later rows (uid clash, bad
options, up to date) need the rendered pod and are decided in `injector.core.inject`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from injector.core import podjson, status
from injector.core.keys import DISABLED, ENABLED, INJECT, NAMESPACE_LABEL, REVISION, STATUS
from injector.core.selectors import LabelSelector, SelectorCode, SelectorError
from mesh.errors import Code

PROXY, INIT, VALIDATION = "istio-proxy", "istio-init", "istio-validation"
VALIDATION_COMMAND = ("python3", "-m", "injector.istio_validation")
DEFAULT_REVISION = "default"
SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease", "local-path-storage"})

_FOREIGN_NAMES = frozenset(
    {
        "linkerd-proxy",
        "linkerd-init",
        "consul-dataplane",
        "consul-connect-inject-init",
        "envoy-sidecar",
        "kuma-sidecar",
        "kuma-init",
        "osm-init",
    }
)
_FOREIGN_IMAGES = ("istio/proxyv2", "linkerd/proxy", "kuma-dp", "consul-dataplane", "openservicemesh/init")
_OS_LABELS = frozenset({"kubernetes.io/os", "beta.kubernetes.io/os"})
_MIRROR = "kubernetes.io/config.mirror"


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
        opt_in_only: a label of the namespace is not enough, the pod must ask.
        pods_override_disabled: a pod's label may ask for a sidecar in a namespace that says disabled.
        never: any match is a no, unless the pod says yes.
        always: any match is a yes for pods that say nothing.
        excluded_namespaces: beside the system namespaces, e.g. the one of the control plane.
        strict_namespaces: a pod that asks or is asked for, but cannot be injected, is denied there.
        revision: name of this injector for the label `istio.io/rev`; `default` also serves the label
            `istio-injection`.
        tags: further names of this revision.
    """

    namespaces_by_default: bool = False
    opt_in_only: bool = False
    pods_override_disabled: bool = False
    never: tuple[LabelSelector, ...] = ()
    always: tuple[LabelSelector, ...] = ()
    excluded_namespaces: frozenset[str] = frozenset()
    strict_namespaces: frozenset[str] = frozenset()
    revision: str = DEFAULT_REVISION
    tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse selectors without requirements: they would match every pod of the cluster."""
        for selector in (*self.never, *self.always):
            if not selector.requirements:
                raise SelectorError(
                    SelectorCode.INVALID,
                    "an empty selector matches every pod; next: name labels, or remove the selector",
                )


def applicable(request: Mapping[str, Any]) -> Decision | None:
    """Row 1 for an AdmissionRequest: None when it is the creation of a pod."""
    kind = request.get("kind") or {}
    found = (kind.get("group") or "", kind.get("version"), kind.get("kind"))
    if found == ("", "v1", "Pod") and request.get("operation") == "CREATE" and not request.get("subResource"):
        return None
    what = f"{request.get('operation')!r:.20} of {kind.get('kind')!r:.40}"
    if request.get("subResource"):
        what += f" (subresource {request['subResource']!r:.40})"
    return _skip(Reason.NOT_APPLICABLE, f"only the creation of v1 pods is looked at, this is {what}")


def decide(
    pod: Mapping[str, Any], namespace: str, namespace_labels: Mapping[str, str], selection: Selection
) -> Decision:
    """Rows 2 to 11 of the table, for the raw JSON of a pod that is being created."""
    explicit, by_label = _explicit(pod)
    wants = explicit == "true"
    refused: Decision | None
    if namespace in SYSTEM_NAMESPACES | selection.excluded_namespaces:
        refused = _skip(
            Reason.SYSTEM_NAMESPACE,
            f"namespace {namespace} is never injected: the cluster's own services live there",
        )
    else:
        refused = _excluded(pod)
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
        view = _View(podjson.labels_of(pod), namespace, namespace_labels, selection)
        refused = view.unselected(wants=wants, by_label=by_label) or _unfit(pod, namespace, selection)
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


def _explicit(pod: Mapping[str, Any]) -> tuple[str, bool]:
    """The pod's own word, lower case ("" = none), and whether a label says it. The label is read first."""
    for found, by_label in ((podjson.labels_of(pod), True), (podjson.annotations_of(pod), False)):
        if INJECT in found:
            return found[INJECT].strip().lower() or "(empty)", by_label
    return "", False


def _excluded(pod: Mapping[str, Any]) -> Decision | None:
    owners = podjson.metadata(pod).get("ownerReferences") or ()
    if _MIRROR in podjson.annotations_of(pod) or any(owner.get("kind") == "Node" for owner in owners):
        return _skip(Reason.MIRROR_POD, "a static pod is run by its node whatever the API server says")
    if _is_windows(podjson.spec(pod)):
        return _skip(Reason.WINDOWS_POD, "the proxy runs on Linux only", warn=True)
    return None


def _is_windows(spec: Mapping[str, Any]) -> bool:
    if (spec.get("os") or {}).get("name") == "windows":
        return True
    if any((spec.get("nodeSelector") or {}).get(label) == "windows" for label in _OS_LABELS):
        return True
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or ()
    # Terms are alternatives: a Windows node is certain only when each of them asks for one.
    return bool(terms) and all(_asks_for_windows(term.get("matchExpressions") or ()) for term in terms)


def _asks_for_windows(expressions: Iterable[Mapping[str, Any]]) -> bool:
    return any(
        e.get("key") in _OS_LABELS and e.get("operator") == "In" and e.get("values") == ["windows"]
        for e in expressions
    )


@dataclass(frozen=True, slots=True)
class _View:
    """What rows 7 to 9 look at."""

    labels: Mapping[str, str]
    namespace: str
    namespace_labels: Mapping[str, str]
    selection: Selection

    def unselected(self, *, wants: bool, by_label: bool) -> Decision | None:
        selection, said = self.selection, self.namespace_labels.get(NAMESPACE_LABEL)
        refused_by_namespace = said is not None and said != ENABLED
        if refused_by_namespace and not (wants and by_label and selection.pods_override_disabled):
            return _skip(
                Reason.NAMESPACE_DISABLED,
                f"namespace {self.namespace} is labelled {NAMESPACE_LABEL}={said!s:.40}"
                f" (allowed are {ENABLED} and {DISABLED})",
            )
        meant = self._revision(said)
        if meant not in {selection.revision, *selection.tags}:
            return _skip(
                Reason.NOT_SELECTED,
                f"the labels name revision {meant!r:.60}; this injector is revision {selection.revision!r}",
            )
        silent = said is None and REVISION not in self.namespace_labels
        if wants and (by_label or not silent):
            return None
        for selector in selection.never:
            if selector.matches(self.labels):
                return _skip(
                    Reason.NEVER_SELECTOR, f"the pod's labels match the never-inject selector: {selector}"
                )
        if any(selector.matches(self.labels) for selector in selection.always):
            return None
        asked = selection.namespaces_by_default or not silent or REVISION in self.labels
        if asked and not selection.opt_in_only:
            return None
        return _skip(Reason.NOT_SELECTED, self._next_step(wants=wants))

    def _revision(self, said: str | None) -> str:
        """Whose pod it is. The label `istio-injection` beats the namespace's revision, that the pod's."""
        if said == ENABLED:
            return DEFAULT_REVISION
        return self.namespace_labels.get(REVISION) or self.labels.get(REVISION) or DEFAULT_REVISION

    def _next_step(self, *, wants: bool) -> str:
        if wants:
            return f"the annotation {INJECT} selects nothing; next: set it as a label of the pod"
        if self.selection.opt_in_only:
            return f"pods have to ask for a sidecar here; next: label the pod {INJECT}=true"
        return (
            f"neither the pod nor namespace {self.namespace} asks for a sidecar; next: kubectl label"
            f" namespace {self.namespace} {NAMESPACE_LABEL}={ENABLED}"
        )


def _unfit(pod: Mapping[str, Any], namespace: str, selection: Selection) -> Decision | None:
    outcome = Outcome.DENY if namespace in selection.strict_namespaces else Outcome.SKIP
    if podjson.spec(pod).get("hostNetwork"):
        return Decision(
            outcome,
            Reason.HOST_NETWORK,
            "hostNetwork is true: capture rules would redirect the whole node's traffic",
            warn=True,
        )
    foreign = _foreign_sidecar(pod)
    if foreign:
        return Decision(outcome, Reason.FOREIGN_SIDECAR, foreign, warn=True)
    return None


def _foreign_sidecar(pod: Mapping[str, Any]) -> str:
    for container in (*podjson.listed(pod, "initContainers"), *podjson.listed(pod, "containers")):
        name, image = container["name"], str(container.get("image") or "")
        if name in _FOREIGN_NAMES or any(part in image for part in _FOREIGN_IMAGES):
            return f"container {name:.63} is the sidecar of another mesh"
    if status.is_foreign(podjson.annotations_of(pod).get(STATUS, "")):
        return f"annotation {STATUS} was written by another injector; next: remove it"
    return ""
