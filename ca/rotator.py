"""The rotation of roots as the replica that leads drives it: at each look one step at most, and one answer.

The steps are written by `ca.keystore_secret`; here is what is around them: what people ask for by annotations
of the ConfigMap of the Secret's name, and what they read there (`mesh.ca_status`). A step is written with the
identifier of the request, before the request is answered: a leader that dies in between has an heir that
answers and does not act again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ca import secret_record
from ca.audit import Audit
from ca.core.rotation import (
    Decision,
    Facts,
    Request,
    RotationCode,
    RotationError,
    RotationSettings,
    RotationState,
    plan,
)
from ca.core.rotation_codec import ANNOTATIONS, is_request, read_request, read_step, request_id
from ca.keystore import KeyStore, KeyStoreCode, KeyStoreError
from ca.keystore_secret import SecretKeyStore
from ca.metrics import CaMetrics
from ca.secret_files import SecretPlace
from mesh.ca_status import (
    STATUS_KEY,
    AgentCounts,
    Answer,
    CaStatus,
    CaStatusError,
    Phase,
    RootRole,
    RootView,
    Step,
    decode,
    encode,
)
from mesh.errors import MeshError
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.obs import logs
from mesh.x509.bundles import bundle_digest
from mesh.x509.certs import CertFields, read_certificate

STATUS_EVERY: Final = dt.timedelta(minutes=10)
"""How often the status is written though nothing has changed: a reader can tell a leader that is gone."""
UNKNOWN: Final = "unknown"
_RESULTS: Final = ("done", "forced", "refused", "conflict", "failed")
_MAX_SUBJECT: Final = 200
_PLUGGED: Final = RotationState(phase=Phase.PLUGGED, generation=0, epoch=0)

_log = logs.logger(__name__)

Counts = Callable[[str, int, dt.datetime], AgentCounts]
"""What agents have reported: digest of the bundle and epoch of the signing root, now."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """The ConfigMap as it was read; None when there is none."""

    record: Mapping[str, Any] | None
    annotations: Mapping[str, Any]
    status: CaStatus | None


def rotation_of(keystore: KeyStore | SecretKeyStore) -> RotationState:
    """Where the rotation stands; phase `plugged` and the numbers 0 when the keys come from files."""
    return keystore.rotation if isinstance(keystore, SecretKeyStore) else _PLUGGED


class Rotator:
    """Looks, takes a step when it is time, answers people, and says where things stand.

    Drive it by `tick`, on one thread.

    Args:
        place: of the ConfigMap.
        unpublished: namespaces without the roots; None while that is not known.
        leading: asked before anything is done.
        writer: name of this replica.
    """

    def __init__(
        self,
        api: KubeApi,
        place: SecretPlace,
        keystore: KeyStore | SecretKeyStore,
        settings: RotationSettings,
        *,
        counts: Counts,
        unpublished: Callable[[], tuple[str, ...] | None],
        leading: Callable[[], bool],
        writer: str,
        metrics: CaMetrics,
        audit: Audit,
    ) -> None:
        self._api = api
        self._place = place
        self._keystore = keystore
        self._settings = settings
        self._counts = counts
        self._unpublished = unpublished
        self._leading = leading
        self._writer = writer
        self._metrics = metrics
        self._audit = audit
        self.problem: MeshError | None = None
        """Why the newest look ended early; None when it did not."""
        self._agents = AgentCounts()
        for step in (*Step, UNKNOWN):
            for result in _RESULTS:
                metrics.rotation_steps.labels(step=step, result=result)

    def tick(self, now: dt.datetime) -> bool:
        """One look; never raises for what it finds.

        Returns:
            True when a step was taken: there is another issuer, or there are other roots.
        """
        if not self._leading():
            self.problem, self._agents = None, AgentCounts()
            return False
        before = rotation_of(self._keystore)
        try:
            self._tick(now)
        except (KubeError, KeyStoreError, RotationError) as e:
            self.problem = e
        else:
            self.problem = None
        return rotation_of(self._keystore) is not before

    def refresh_gauges(self, now: dt.datetime) -> None:
        """Bring gauges up to date before they are shown."""
        metrics, state = self._metrics, rotation_of(self._keystore)
        for phase in Phase:
            metrics.rotation_phase.labels(phase=phase).set(int(phase is state.phase))
        since = state.since
        metrics.rotation_phase_age.set((now - since).total_seconds() if since is not None else 0)
        metrics.bundle_generation.set(state.generation)
        metrics.issuer_epoch.set(state.epoch)
        metrics.agents_expected.set(self._agents.expected)
        metrics.agents_acked.set(self._agents.acked)
        metrics.agents_outdated.set(self._agents.outdated)

    # --- one look ---

    def _tick(self, now: dt.datetime) -> None:
        seen = self._look()
        self._catch_up(seen.status, now)
        state = rotation_of(self._keystore)
        request, answer = _asked(seen.annotations, state, now)
        if answer is not None and not answer.done:
            self._refused(answer)
        decision = self._plan(state, request, now)
        if decision.refused is not None and request is not None:
            answer = _refusal(request.step, request.id, decision.refused, state, now)
            if not answer.done:
                self._refused(answer)
        if decision.step is not None:
            answer = self._take(decision.step, decision.forced, request, now) or answer
            decision = self._plan(rotation_of(self._keystore), None, now)
        self._say(seen, decision, answer, now)

    def _look(self) -> _Seen:
        record = secret_record.get(self._api, self._place.config_map)
        if record is None:
            return _Seen(None, {}, None)
        annotations = (record.get("metadata") or {}).get("annotations") or {}
        text = (record.get("data") or {}).get(STATUS_KEY)
        try:
            status = decode(text) if isinstance(text, str) else None
        except CaStatusError:
            status = None  # it is written anew
        return _Seen(record, annotations if isinstance(annotations, dict) else {}, status)

    def _catch_up(self, status: CaStatus | None, now: dt.datetime) -> None:
        """When the Secret is an older copy, give what it says numbers that nobody has seen."""
        keystore = self._keystore
        if status is None or status.phase is Phase.PLUGGED or not isinstance(keystore, SecretKeyStore):
            return
        state = keystore.rotation
        if status.generation <= state.generation and status.epoch <= state.epoch:
            return
        keystore.renumber(status.generation + 1, status.epoch + 1, now)
        _log.warning(
            "the Secret with the root is an older copy: its roots got numbers that no agent has seen yet",
            generation=status.generation + 1,
            epoch=status.epoch + 1,
        )

    def _plan(self, state: RotationState, request: Request | None, now: dt.datetime) -> Decision:
        issuer = self._keystore.issuer(now)
        self._agents = self._counts(bundle_digest(issuer.roots), state.epoch, now)
        root = self._keystore.root
        facts = Facts(
            now=now,
            root_not_before=root.not_before,
            root_not_after=root.not_after,
            counts=self._agents,
            unpublished=self._unpublished(),
            request=request,
        )
        return plan(state, facts, self._settings)

    def _take(self, step: Step, forced: bool, request: Request | None, now: dt.datetime) -> Answer | None:
        """Take a step; the answer to who asked for it.

        Raises:
            KeyStoreError, KubeError: it was not taken, or nobody knows; the next look tells. Keys that cannot
                be used are no such case when somebody asked: that is the answer.
        """
        keystore = self._keystore
        if not isinstance(keystore, SecretKeyStore):
            raise RotationError(RotationCode.PLUGGED, "the CA comes from files: there is nothing to rotate")
        try:
            state = keystore.rotate(step, now, self._settings, forced=forced, request=request)
        except (KeyStoreError, KubeError) as e:
            result = "conflict" if e.code is KeyStoreCode.CHANGED else "failed"
            self._metrics.rotation_steps.labels(step=step, result=result).inc()
            _log.warning("step of the rotation of roots was not taken", step=step, result=result, error=e)
            if request is None or isinstance(e, KubeError) or result == "conflict":
                raise
            return Answer(step=step, id=request.id, done=False, code=e.code, text=e.public, at=now)
        self._metrics.rotation_steps.labels(step=step, result="forced" if forced else "done").inc()
        asked = request.id if request is not None else None
        _log.info(
            "step of the rotation of roots",
            step=step,
            forced=forced,
            phase=state.phase,
            generation=state.generation,
            epoch=state.epoch,
        )
        self._audit.rotated(step, state, forced=forced, asked=request is not None, request_id=asked or "")
        if request is None or state.handled is None:
            return None
        return Answer(step=step, id=request.id, done=True, code="", text=state.handled.text, at=now)

    def _refused(self, answer: Answer) -> None:
        step = answer.step or UNKNOWN
        self._metrics.rotation_steps.labels(step=step, result="refused").inc()
        _log.info("request for a step of the rotation of roots is refused", step=step, code=answer.code)
        self._audit.rotation_refused(step, code=answer.code, detail=answer.text, request_id=answer.id)

    # --- what is said ---

    def _say(self, seen: _Seen, decision: Decision, answer: Answer | None, now: dt.datetime) -> None:
        status = self._status(seen.status, decision, answer, now)
        held = seen.status
        asked = is_request(seen.annotations)
        if held is not None and not asked and answer is None:
            same = encode(replace(status, updated=held.updated)) == encode(held)
            if same and abs(now - held.updated) < STATUS_EVERY:
                return
        record = seen.record or {"metadata": {"name": self._place.name, "namespace": self._place.namespace}}
        data = {**(record.get("data") or {}), STATUS_KEY: encode(status)}
        if isinstance(self._keystore, SecretKeyStore):
            data = secret_record.stamped(data, self._keystore.root.der, now)
        meta = dict(record.get("metadata") or {})
        if asked:
            meta["annotations"] = {k: v for k, v in seen.annotations.items() if k not in ANNOTATIONS}
        body = {**record, "metadata": meta, "data": data}
        try:
            if seen.record is None:
                body = {"apiVersion": "v1", "kind": "ConfigMap", **body}
                self._api.create(self._place.config_maps, body)
            else:
                self._api.replace(self._place.config_map, body)
        except KubeError as e:
            if e.code not in {KubeCode.CONFLICT, KubeCode.ALREADY_EXISTS}:
                raise
            # Somebody wrote there meanwhile, perhaps another request: the next look sees it.

    def _status(
        self, held: CaStatus | None, decision: Decision, answer: Answer | None, now: dt.datetime
    ) -> CaStatus:
        state, issuer = rotation_of(self._keystore), self._keystore.issuer(now)
        before = held.answer if held is not None else None
        return CaStatus(
            phase=state.phase,
            generation=state.generation,
            epoch=state.epoch,
            since=self._since(state, held, now),
            bundle_digest=bundle_digest(issuer.roots),
            roots=tuple(self._view(read_certificate(der), state) for der in issuer.roots),
            issuer_serial=issuer.certificate.serial,
            issuer_not_after=issuer.not_after,
            agents=self._agents,
            automatic=self._settings.automatic and state.phase is not Phase.PLUGGED,
            next_step=decision.next_step,
            next_at=decision.next_at,
            waiting=decision.waiting,
            answer=answer or before or _answered(state),
            writer=self._writer,
            updated=now,
        )

    def _since(self, state: RotationState, held: CaStatus | None, now: dt.datetime) -> dt.datetime:
        if state.since is not None:
            return state.since
        if state.phase is Phase.PLUGGED:
            return held.since if held is not None and held.phase is Phase.PLUGGED else now
        return self._keystore.root.not_before

    def _view(self, root: CertFields, state: RotationState) -> RootView:
        keystore = self._keystore
        role = RootRole.TRUSTED
        if root.der == keystore.root.der:
            role = RootRole.SIGNING
        elif state.phase in {Phase.ACTIVE, Phase.TAINTED}:
            role = RootRole.RETIRING
        elif isinstance(keystore, SecretKeyStore) and keystore.next_root == root:
            role = RootRole.NEXT
        return RootView(
            role=role,
            sha256=secret_record.digest(root.der),
            subject=root.certificate.subject.rfc4514_string()[:_MAX_SUBJECT],
            not_before=root.not_before,
            not_after=root.not_after,
        )


def _asked(
    annotations: Mapping[str, Any], state: RotationState, now: dt.datetime
) -> tuple[Request | None, Answer | None]:
    """A request to decide on, or the answer to one that needs no decision."""
    if not is_request(annotations):
        return None, None
    try:
        request = read_request(annotations)
    except RotationError as e:
        return None, _refusal(read_step(annotations), request_id(annotations), e, state, now)
    done = _answered(state)
    if done is not None and request.id and (done.step, done.id) == (request.step, request.id):
        return None, done  # it was taken, and the answer was lost
    return request, None


def _answered(state: RotationState) -> Answer | None:
    done = state.handled
    if done is None:
        return None
    return Answer(step=done.step, id=done.id, done=True, code="", text=done.text, at=done.at)


def _refusal(
    step: Step | None, asked_id: str, error: RotationError, state: RotationState, now: dt.datetime
) -> Answer:
    done = _answered(state)
    if done is not None and error.code is RotationCode.PHASE and (done.step, done.id) == (step, asked_id):
        return done  # a request without an identifier, which was taken before it was answered
    return Answer(step=step, id=asked_id, done=False, code=error.code, text=error.public, at=now)
