"""One admission of a policy: review in, answer out. No transport, no cluster.

The steps: read, `injector.core.policies`, answer, tell (metrics, log). The process needs no right for it:
everything that is judged comes with the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from injector import review
from injector.core.decision import Reason
from injector.core.policies import PolicyDecision, decide_policy
from injector.metrics import WebhookMetrics
from injector.review import Answer, Request, ReviewCode
from injector.reviewer import Counts, Reviewer
from mesh.obs.logs import logger
from mesh.policy.model import API_VERSIONS, KINDS

_UPDATE: Final = "UPDATE"
_OPERATIONS: Final = frozenset({"CREATE", _UPDATE})
_OTHER: Final = str(Reason.NOT_APPLICABLE)
_MAX_NAME: Final = 253
_ELSEWHERE: Final = "the condition Accepted of the object (kubectl get -o yaml)"

_log = logger(__name__)


class PolicyAdmission(Reviewer):
    """Answers reviews of policies."""

    __slots__ = ("_metrics",)

    def __init__(self, metrics: WebhookMetrics) -> None:
        self._metrics = metrics

    @property
    def counts(self) -> Counts:
        """Where answers are counted."""
        return Counts(self._metrics.policies, self._metrics.policy_duration, self._metrics.dry_runs)

    def decide(self, found: Request) -> Answer:
        """The answer about a policy."""
        kind = _kind(found.raw)
        if kind is None:
            response = {"uid": found.uid, "allowed": True, "auditAnnotations": {"reason": _OTHER}}
            return Answer(body=review.envelope(response), outcome="allowed", reason=_OTHER)
        new, old = found.raw.get("object"), found.raw.get("oldObject")
        if not isinstance(new, dict):
            return review.bad_object(found.uid, ReviewCode.BAD_POLICY, "object: expected a policy")
        if not isinstance(old, dict) or found.raw["operation"] != _UPDATE:
            old = None
        decision = decide_policy(_named(new, found), _named(old, found) if old is not None else None, kind)
        answer = _answer(found, decision)
        _log.info(
            "policy admission",
            uid=found.uid,
            kind=kind,
            namespace=found.namespace,
            policy=str(_named(new, found)["metadata"].get("name"))[:_MAX_NAME],
            operation=found.raw["operation"],
            outcome=answer.outcome,
            reason=answer.reason,
            problems=len(decision.problems),
            dry_run=found.dry_run,
        )
        return answer


def _kind(request: Mapping[str, Any]) -> str | None:
    """The kind of policy that is to be created or changed; None when the request is about something else."""
    kind = request["kind"]
    name, version = kind.get("kind"), f"{kind.get('group')}/{kind.get('version')}"
    if name not in KINDS or version not in API_VERSIONS or request.get("subResource"):
        return None
    return str(name) if request["operation"] in _OPERATIONS else None


def _named(item: Mapping[str, Any], found: Request) -> dict[str, Any]:
    """The object with the name and namespace that it will have: a request may leave them out."""
    meta = item.get("metadata")
    meta = dict(meta) if isinstance(meta, dict) else {}
    meta["namespace"] = meta.get("namespace") or found.namespace
    name = meta.get("name") or found.raw.get("name")
    generated = meta.get("generateName")
    if not name and isinstance(generated, str) and generated:
        name = f"{generated}x"
    if name:
        meta["name"] = name
    return {**item, "metadata": meta}


def _answer(found: Request, decision: PolicyDecision) -> Answer:
    response: dict[str, Any] = {"uid": found.uid, "allowed": decision.allowed}
    warnings = review.bounded_warnings(decision.warnings, _ELSEWHERE)
    if warnings:
        response["warnings"] = warnings
    audit = {"reason": str(decision.reason), "message": decision.message}
    if decision.problems:
        audit["problems"] = "; ".join(decision.problems)
        head = f"{decision.reason}: {decision.message}"
        # Not 422: of an Invalid status kubectl shows the details, and older ones nothing else.
        response["status"] = review.denial(400, (head, *(f"- {problem}" for problem in decision.problems)))
    response["auditAnnotations"] = review.audit(audit)
    outcome = "allowed" if decision.allowed else "denied"
    return Answer(body=review.envelope(response), outcome=outcome, reason=str(decision.reason))
