"""One admission of a pod: review in, answer out. No transport, no clock of its own.

The steps: read, find the namespace, `injector.core.inject`, answer, tell (metrics, Event, log). Either
all of an answer is made or none: an exception on the way is a failed call, never half a patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from injector import review
from injector.core.decision import Reason
from injector.core.inject import Result, inject
from injector.core.podjson import PodError
from injector.core.settings import Cluster, InjectorSettings
from injector.events import EventSink
from injector.metrics import WebhookMetrics
from injector.namespaces import Namespace
from injector.review import Answer, Request, Review, ReviewCode, ReviewError
from injector.reviewer import Counts, Reviewer
from mesh.errors import Category
from mesh.kube.api import KubeError
from mesh.obs.logs import logger

_log = logger(__name__)
# A namespace that was changed a moment ago may not be in the cache: these are decided once more with
# what the API server says, if that differs.
_NAMESPACE_DECIDES = frozenset({Reason.NOT_SELECTED, Reason.NAMESPACE_DISABLED})


class NamespaceSource(Protocol):
    """`injector.namespaces.Namespaces`."""

    def get(self, name: str) -> Namespace | None: ...
    def ask(self, name: str) -> Namespace | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission(Reviewer):
    """Answers reviews of pods.

    Attributes:
        settings: those in force now.
        cluster: what the cluster can.
    """

    settings: Callable[[], InjectorSettings]
    cluster: Callable[[], Cluster]
    namespaces: NamespaceSource
    events: EventSink
    metrics: WebhookMetrics

    @property
    def counts(self) -> Counts:
        """Where answers are counted."""
        return Counts(self.metrics.admissions, self.metrics.duration, self.metrics.dry_runs)

    def decide(self, found: Request) -> Answer:
        """The answer about a pod."""
        about = review.of_pod(found)
        answer = review.settle(about)
        if answer is None:
            answer = self._answer(about)
            _report(about, answer)
        if answer.patch_bytes:
            self.metrics.patch.observe(answer.patch_bytes)
        return answer

    def _answer(self, found: Review) -> Answer:
        try:
            result = self._decide(found)
        except PodError as error:
            return review.bad_pod(found, error.public)
        self.events.tell(found.pod, found.namespace, result.decision, dry_run=found.dry_run)
        return review.answer(found, result)

    def _decide(self, found: Review) -> Result:
        namespace, cached = self.namespaces.get(found.namespace), True
        if namespace is None:
            namespace, cached = self._ask(found.namespace), False
        result = self._inject(found, namespace)
        if cached and result.decision.reason in _NAMESPACE_DECIDES:
            try:
                fresh = self.namespaces.ask(found.namespace)
            except KubeError as error:
                _log.warning("a namespace cannot be looked up", namespace=found.namespace, error=error)
                return result
            if fresh is not None and fresh != namespace:
                return self._inject(found, fresh)
        return result

    def _ask(self, name: str) -> Namespace:
        try:
            namespace = self.namespaces.ask(name)
        except KubeError as error:
            raise ReviewError(
                ReviewCode.NOT_READY,
                503,
                f"namespace {name} is not known yet and the API server does not answer",
                category=Category.UNAVAILABLE,
                private=error.private,
            ) from error
        # A namespace that is gone: the API server will refuse the pod, whatever is said here.
        return namespace if namespace is not None else Namespace()

    def _inject(self, found: Review, namespace: Namespace) -> Result:
        return inject(
            found.pod,
            namespace=found.namespace,
            namespace_labels=namespace.labels,
            namespace_annotations=namespace.annotations,
            config=self.settings(),
            capabilities=self.cluster(),
        )


def _report(found: Review, answer: Answer) -> None:
    meta = found.pod.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    _log.info(
        "admission",
        uid=found.uid,
        namespace=found.namespace,
        pod=meta.get("name") or f"{meta.get('generateName', '')}***",
        outcome=answer.outcome,
        reason=answer.reason,
        patch_bytes=answer.patch_bytes,
        dry_run=found.dry_run,
    )
