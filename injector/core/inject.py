"""The one entry of injection, for the webhook and for the command line: raw pod in, patch out.

Rows 2 to 11 are decided in `injector.core.decision`; here follow

===  ==========================================================  ======  ==========================
row  condition                                                   result  code
===  ==========================================================  ======  ==========================
 12  an application's user or primary group is the proxy's       deny    uid_clash, gid_clash *
 13  bad options, or names and ports that collide                deny    invalid_option * (all)
 14  the namespace's pod security level refuses what is added    warn    pod_security *
 15  nothing to change                                           allow   up_to_date
 16  otherwise                                                   patch   injected, reinjected (other
                                                                         settings), repaired
===  ==========================================================  ======  ==========================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from injector.core import checks, metadata, openshift, overrides, podjson, psa
from injector.core.decision import INIT, VALIDATION, Decision, Outcome, Reason, decide
from injector.core.keys import POD_SECURITY, SIDECAR
from injector.core.options import PodOptions, resolve_options
from injector.core.overrides import Limits
from injector.core.patch import diff
from injector.core.podjson import Json
from injector.core.render import Rendered, grace_seconds, render
from injector.core.restore import Original, original, uninject
from injector.core.settings import Ceilings, Cluster, ClusterFeatures, InjectorSettings
from mesh.errors import MeshError

__all__ = [
    "Ceilings",
    "Cluster",
    "ClusterFeatures",
    "InjectorSettings",
    "Result",
    "inject",
    "uninject",
]

MAX_WARNING = 256
"""Characters; API servers cut longer ones, and drop all that is beyond 4096 in total."""
_MAX_WARNINGS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is done with a pod, and everything that is to be told about it.

    Attributes:
        decision: outcome, the one reason code, and a sentence.
        patch: RFC 6902 operations on the raw pod; empty when nothing changes.
        problems: each thing that is wrong with the pod's options, one sentence each.
        warnings: for the client, at most 256 characters each.
        audit: audit annotations, key without prefix -> text.
        mutations: what the patch does, in words, for the command line.
    """

    decision: Decision
    patch: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    audit: Mapping[str, str] = field(default_factory=dict)
    mutations: tuple[str, ...] = ()


def inject(
    pod: Mapping[str, Any],
    *,
    namespace: str,
    namespace_labels: Mapping[str, str],
    namespace_annotations: Mapping[str, str],
    config: InjectorSettings,
    capabilities: Cluster,
    workload: str = "",
) -> Result:
    """Decide about a pod and compute its patch. Never changes `pod`.

    Args:
        pod: raw JSON of a v1 Pod that is being created, or a pod template.
        namespace: from the admission request; the pod's own may be empty.
        namespace_labels: of that namespace.
        namespace_annotations: of that namespace: defaults of options.
        workload: name of the workload a template belongs to; a pod tells it by its owner.

    Raises:
        PodError: the document is not shaped as a pod.
    """
    podjson.check_shape(pod)
    decision = decide(pod, namespace, namespace_labels, config.selection)
    if decision.outcome is not Outcome.INJECT:
        return _told(decision)
    options, wrong = resolve_options(podjson.annotations_of(pod), namespace_annotations, config.defaults)
    problems = [str(problem) for problem in wrong]
    try:
        before = original(pod, config.liveness_grace_seconds)
    except (MeshError, ValueError) as error:
        return _denied(
            Reason.INVALID_OPTION, [*problems, error.public if isinstance(error, MeshError) else str(error)]
        )
    try:
        uid = openshift.proxy_user(namespace_annotations) or config.proxy_uid
    except ValueError as error:
        return _denied(Reason.INVALID_OPTION, [*problems, str(error)])
    for reason, clash in (
        (Reason.UID_CLASH, checks.uid_clash(before.pod, uid)),
        (Reason.GID_CLASH, checks.gid_clash(before.pod, uid)),
    ):
        if clash:
            return _denied(reason, [clash])
    possible = capabilities.native(podjson.spec(before.pod).get("nodeSelector") or {})
    # Where nothing is known of the nodes a pod is classic, which works everywhere.
    native = possible is True if options.native_sidecar is None else options.native_sidecar
    if native and possible is False:
        problems.append(
            f"{SIDECAR}nativeSidecar is true, but not every node where this pod may run has native sidecars"
            " (Kubernetes 1.29); next: remove the annotation, or have a nodeSelector choose newer nodes"
        )
    problems += _problems(before, options, config, native=native)
    if problems:
        return _denied(Reason.INVALID_OPTION, problems)
    name = metadata.workload_name(before.pod, workload)
    rendered = render(pod, before, options, config, native=native, workload=name, proxy_uid=uid)
    problems += [*rendered.problems, *checks.rendered(rendered.sidecar[-1])]
    if problems:
        return _denied(Reason.INVALID_OPTION, problems)
    forbidden = psa.violations(namespace_labels.get(POD_SECURITY, ""), rendered.sidecar, rendered.volumes)
    if forbidden and config.deny_pod_security:
        return _denied(Reason.POD_SECURITY, [_insecure(namespace, forbidden)])
    return _patched(pod, before, rendered, _insecure(namespace, forbidden) if forbidden else "")


def _problems(
    before: Original,
    options: PodOptions,
    config: InjectorSettings,
    *,
    native: bool,
) -> list[str]:
    pod = before.pod
    problems = checks.collisions(pod, options) + checks.user_volumes(pod, options)
    problems += checks.bounds(options, config.ceilings)
    problems += checks.termination(options, grace_seconds(pod), native=native)
    if before.declared is not None:
        names = {v["name"] for v in podjson.listed(pod, "volumes")} | set(options.user_volumes)
        hold = not native and options.hold_application
        problems += overrides.check(before.declared, Limits(config.ceilings, hold, frozenset(names)))
    return problems


def _patched(pod: Mapping[str, Any], before: Original, rendered: Rendered, insecure: str) -> Result:
    """The patch, and the reason that goes with it; the reason of an earlier injection stays."""
    status = before.status
    first = Reason.POD_SECURITY if insecure else Reason.INJECTED
    reason = status.reason if status else first.value
    patch = diff(pod, rendered.finished(reason))
    found = first
    if status and not patch:
        found = Reason.UP_TO_DATE
    elif status:
        now = rendered.status
        same = (status.digest, status.version, status.mode) == (now.digest, now.version, now.mode)
        found = Reason.REPAIRED if same else Reason.REINJECTED
        patch = diff(pod, rendered.finished(found.value))
    if insecure:
        decision = Decision(Outcome.INJECT, Reason.POD_SECURITY, insecure, warn=True)
    else:
        decision = Decision(Outcome.INJECT, found, _SENTENCES[found])
    return _told(
        decision,
        patch=tuple(patch),
        remarks=rendered.remarks,
        mutations=_mutations(patch, rendered) if patch else (),
    )


_SENTENCES = {
    Reason.INJECTED: "the sidecar is added",
    Reason.UP_TO_DATE: "the sidecar is as it should be",
    Reason.REINJECTED: "the sidecar was made with other settings and is replaced",
    Reason.REPAIRED: "others changed the pod since the sidecar was added; it is put right",
}


def _insecure(namespace: str, forbidden: Sequence[str]) -> str:
    return (
        f"namespace {namespace} enforces a pod security level that refuses {'; '.join(forbidden)};"
        f" next: the chart's capture.mode=node, or label it {POD_SECURITY}=privileged"
    )


def _mutations(patch: Sequence[Json], rendered: Rendered) -> tuple[str, ...]:
    status = rendered.status
    found = []
    if INIT in status.init_containers:
        found.append(f"init container {INIT}: capture rules")
    if VALIDATION in status.init_containers:
        found.append(
            f"init container {VALIDATION}: waits for the capture rules, which the node's agent writes"
        )
    kind = "native sidecar" if status.mode == "native" else "container"
    found.append(f"{kind} {rendered.sidecar[-1]['name']}: {rendered.sidecar[-1]['image']}")
    found += [f"volume {name}" for name in status.volumes]
    found += [f"probe {path}" for path in status.probes]
    found += [f"label {key}" for key in status.labels]
    return (*found, f"{len(patch)} operations")


def _denied(reason: Reason, problems: list[str]) -> Result:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    decision = Decision(Outcome.DENY, reason, f"{problems[0]}{more}", warn=True)
    return _told(decision, problems=tuple(problems))


def _told(
    decision: Decision,
    *,
    patch: tuple[Json, ...] = (),
    problems: tuple[str, ...] = (),
    remarks: tuple[str, ...] = (),
    mutations: tuple[str, ...] = (),
) -> Result:
    said = list(problems) or ([decision.message] if decision.warn else [])
    audit = {"reason": decision.reason.value, "message": decision.message}
    if remarks:
        audit["remarks"] = "; ".join(remarks)
    return Result(
        decision=decision,
        patch=patch,
        problems=problems,
        warnings=_bounded([f"{decision.reason.value}: {text}" for text in said] + list(remarks)),
        audit=audit,
        mutations=mutations,
    )


def _bounded(texts: list[str]) -> tuple[str, ...]:
    """As many warnings as API servers pass on, each in one line."""
    found: list[str] = []
    left = _MAX_WARNINGS
    for text in texts:
        line = " ".join(f"gatehouse: {text}".split())
        line = line if len(line) <= MAX_WARNING else line[: MAX_WARNING - 1] + "…"
        left -= len(line.encode())
        if left < 0:
            break
        found.append(line)
    return tuple(found)
