"""The one entry of injection, for the webhook and for the command line: raw pod in, patch out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from injector.core.decision import Decision, Outcome, Reason, decide
from injector.core.settings import Ceilings, Cluster, ClusterFeatures, InjectorSettings

__all__ = ["Ceilings", "Cluster", "ClusterFeatures", "InjectorSettings", "Result", "inject"]


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
    """
    decision = decide(pod, namespace, namespace_labels, config.selection)
    if decision.outcome is Outcome.SKIP:
        return _told(decision)
    return _told(Decision(Outcome.INJECT, Reason.UP_TO_DATE, "nothing to change"))


def _told(decision: Decision) -> Result:
    return Result(decision=decision, audit={"reason": decision.reason.value, "message": decision.message})
