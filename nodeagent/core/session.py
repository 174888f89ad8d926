"""Discovery streams as pure state machines: requests and snapshots in, responses out.

`SotwSession` speaks the state of the world, `DeltaSession` the incremental form; both reconcile what
the client asked for with the newest snapshot by the same rules (S-01 to S-19, P4, P7). One session
serves one stream of either service: SDS carries secrets only, ADS every type in make-before-break order.

Names of endpoints: the endpoints of a cluster bear the cluster's name.
"""

from __future__ import annotations

import enum
import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from envoy.service.discovery.v3 import discovery_pb2

from mesh.envoy.resources import (
    CLUSTER,
    ENDPOINT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE,
    SECRET,
    STATE_OF_THE_WORLD,
    TYPE_URLS,
    Resource,
)
from mesh.errors import Category
from nodeagent.core import names
from nodeagent.core.snapshot import WorkloadSnapshot
from nodeagent.core.status import MAX_MESSAGE, StatusBook
from nodeagent.core.subscriptions import (
    NONE,
    ONE_BY_ONE,
    SEND_ORDER,
    WILDCARD,
    Response,
    SessionCode,
    SessionError,
    SessionEvents,
    SessionLimits,
    Subscription,
    check_names,
    too_many,
)
from nodeagent.core.trust import Verdict, verdict_on_roots

_REFERRERS: Final = (LISTENER, ROUTE, EXTENSION_CONFIG)
"""Types that may refer to a cluster: they must be in force before a cluster goes."""
_SECRETS_ONLY: Final = frozenset({SECRET})
_MAX_NODE_ID = 256


class Service(enum.Enum):
    """Which service the stream belongs to."""

    SDS = "sds"
    ADS = "ads"

    @property
    def types(self) -> frozenset[str]:
        """Type URLs that it serves."""
        return _SECRETS_ONLY if self is Service.SDS else TYPE_URLS

    def has_wildcard(self, type_url: str) -> bool:
        """True when a first request without names means everything (S-07).

        For secrets only on the SDS service, whose clients may not know names. On ADS it is an Envoy
        that has no secret to ask for: it gets none (D10b).
        """
        return type_url in STATE_OF_THE_WORLD or self is Service.SDS


class Session:
    """What both forms share. Use `SotwSession` or `DeltaSession`.

    Args:
        workload: key for reports.
        service: SDS or ADS.
        snapshot: what is known now.
        new_nonce: gives a fresh unpredictable string at each call (S-02).
        status: the workload's book of acceptances and refusals.
        events: told what happens.
        limits: bounds on requests.
    """

    __slots__ = (
        "_events",
        "_limits",
        "_new_nonce",
        "_resend",
        "_service",
        "_snapshot",
        "_status",
        "_subscriptions",
        "_unknown_types",
        "_workload",
        "node_id",
    )
    delta: ClassVar[bool]

    def __init__(
        self,
        *,
        workload: str,
        service: Service,
        snapshot: WorkloadSnapshot,
        new_nonce: Callable[[], str],
        status: StatusBook,
        events: SessionEvents,
        limits: SessionLimits = SessionLimits(),  # noqa: B008 - frozen value
    ) -> None:
        self._workload = workload
        self._service = service
        self._snapshot = snapshot
        self._new_nonce = new_nonce
        self._status = status
        self._events = events
        self._limits = limits
        self._subscriptions: dict[str, Subscription] = {}
        self._unknown_types = NONE
        self._resend = NONE
        self.node_id = ""
        """Who the first request said that it is (S-01); a label for logs, never an identity."""

    @property
    def revision(self) -> int:
        """Revision of the snapshot that the client is being told about."""
        return self._snapshot.revision

    def verdict(self, snapshot: WorkloadSnapshot) -> Verdict | None:
        """What the client says of the roots in that snapshot; None when it has not asked for roots."""
        return verdict_on_roots(self._subscriptions.get(SECRET), snapshot, self._status)

    # --- input ----------------------------------------------------------------------------------

    def on_snapshot(self, snapshot: WorkloadSnapshot) -> list[Response]:
        """Take a newer snapshot and say what the client must now be told."""
        same_config = snapshot.config is self._snapshot.config
        self._snapshot = snapshot
        return self._reconcile(_SECRETS_ONLY if same_config else TYPE_URLS)

    def _open(self, type_url: str, node_id: str) -> tuple[Subscription | None, bool]:
        """The subscription that a request is about, and whether it is the type's first request."""
        if not self.node_id:
            self.node_id = sys.intern(node_id[:_MAX_NODE_ID])
        if not type_url and self._service is Service.SDS:
            type_url = SECRET  # the service says it already (F-75)
        if type_url not in self._service.types:
            self._refuse_type(type_url)
            return None, False
        found = self._subscriptions.get(type_url)
        if found is None:
            found = self._subscriptions[type_url] = Subscription(type_url)
            return found, True
        return found, False

    def _refuse_type(self, type_url: str) -> None:
        if self._service is Service.SDS or not type_url:
            served = SECRET if self._service is Service.SDS else "one of the types that ADS carries"
            raise SessionError(
                SessionCode.TYPE_URL,
                f"type_url: found {type_url[:120]!r}; this service serves {served}",
                category=Category.INVALID_ARGUMENT,
            )
        # A proxy that asks for one type too many (RTDS, say) must not lose all the others: it waits.
        if type_url not in self._unknown_types:
            if len(self._unknown_types) >= self._limits.unknown_types:
                raise too_many(
                    SessionCode.TOO_MANY_TYPES, "type_url: too many types that are not served here"
                )
            self._unknown_types |= {type_url}
            self._events.on_unknown(self._workload, type_url[: self._limits.name_bytes], "")

    def _answer(self, sub: Subscription, nonce: str, error: str | None) -> None:
        """Book an ACK (`error` None) or a NACK (S-03) of a response of ours; other nonces are nothing."""
        pairs = sub.settle(nonce)
        if pairs is None:
            return
        by_name = dict(pairs)
        if error is None:
            if nonce == sub.nonce:
                sub.good_nonce = nonce
            for name, version in pairs:
                self._status.accept(sub.type_url, name, version)
            self._events.on_ack(self._workload, sub.type_url, tuple(by_name))
            return
        guilty = names.named_in(error, frozenset(by_name)) if sub.is_root else frozenset()
        if not guilty:
            guilty = self._suspects(sub, by_name)
        for name, version in pairs:
            if name not in guilty:
                # What stood in the same response and was not named is in force (prototype 5).
                self._status.accept(sub.type_url, name, version)
            elif sub.sent.get(name) == version and name not in sub.alone:
                sub.refused |= {name}
            if name in guilty and name not in sub.alone:
                self._status.refuse(sub.type_url, name, version, error)
        self._events.on_nack(self._workload, sub.type_url, tuple(sorted(guilty)), error[:MAX_MESSAGE])

    def _suspects(self, sub: Subscription, by_name: Mapping[str, str]) -> frozenset[str]:
        """Who may be guilty when the text names nobody; starts to send them one by one if that helps."""
        fresh = {n for n, v in by_name.items() if not self._status.is_accepted(sub.type_url, n, v)}
        suspects = frozenset(fresh or by_name)
        if len(by_name) > 1 and (self.delta or not sub.is_root):
            for name in suspects:
                if sub.sent.get(name) == by_name[name]:
                    # Not a loop (S-16): alone it is refused for good, or accepted.
                    sub.alone |= {name}
                    sub.sent.pop(name)
        return suspects

    # --- output ---------------------------------------------------------------------------------

    def _reconcile(self, types: frozenset[str] = TYPE_URLS) -> list[Response]:
        responses: list[Response] = []
        for type_url in SEND_ORDER:
            sub = self._subscriptions.get(type_url)
            if sub is None or type_url not in types or not self._synced(type_url):
                continue
            while (response := self._next(sub)) is not None:
                responses.append(response)
        return responses

    def _synced(self, type_url: str) -> bool:
        """Configuration that is not compiled yet is silence, never emptiness."""
        return type_url == SECRET or self._snapshot.config is not None

    def _desired(self, sub: Subscription) -> dict[str, Resource]:
        """What the client should hold, by the name it asked for."""
        if not sub.wildcard:
            found = ((n, names.find(self._snapshot, sub.type_url, n)) for n in sub.names)
            desired = {n: r for n, r in found if r is not None}
        else:
            source = self._snapshot.secrets if sub.type_url == SECRET else self._snapshot.config
            desired = dict(source.of_type(sub.type_url)) if source is not None else {}
            for name in sub.names:
                found_alias = names.find(self._snapshot, sub.type_url, name)
                if found_alias is not None:
                    desired[name] = found_alias
        if sub.type_url == SECRET:
            self._report(sub, desired)
        return desired

    def _report(self, sub: Subscription, desired: Mapping[str, Resource]) -> None:
        for name in sub.names:
            if name in desired or name in sub.reported:
                continue
            meaning = names.judge_secret(self._snapshot, name)
            if meaning is names.SecretName.FOREIGN:
                sub.reported |= {name}
                self._events.on_unauthorised(self._workload, SECRET, name)
            elif meaning is names.SecretName.UNKNOWN:
                sub.reported |= {name}
                self._events.on_unknown(self._workload, SECRET, name)

    def _next(self, sub: Subscription) -> Response | None:
        desired = self._desired(sub)
        changed = sub.changed(desired)
        gone = [n for n in sub.sent if n not in desired] if sub.is_root else []
        if gone and sub.type_url == CLUSTER and not self._referrers_settled():
            # Kept until nothing refers to it, unless it warms for endpoints that will never come.
            gone = [n for n in gone if n in self._awaiting_endpoints()]
        if not changed and not gone and (sub.answered or not sub.is_root):
            return None
        if sub.waits(changed):
            return None
        return self._respond(sub, desired, changed, gone)

    def _respond(
        self, sub: Subscription, desired: dict[str, Resource], changed: list[str], gone: list[str]
    ) -> Response:
        changed.sort(key=lambda name: names.send_order(sub.type_url, name))
        if sub.type_url in ONE_BY_ONE:
            changed = changed[:1]
        elif not sub.alone.isdisjoint(changed):
            crowd = [n for n in changed if n not in sub.alone]
            changed = crowd or changed[:1]
        full = sub.is_root and not self.delta
        if full:
            kept = {n: r for n, r in sub.bodies.items() if n not in desired and n not in gone}
            sending = {**desired, **kept}
            sub.bodies = sending if sub.type_url == CLUSTER else {}
        else:
            sending = {n: desired[n] for n in changed}
        for name in gone:
            sub.forget(name)
        if sub.type_url == CLUSTER:
            self._await_endpoints(self._awaiting_endpoints().difference(gone))
        nonce = self._new_nonce()
        sub.sending(nonce, tuple((n, r.version) for n, r in sending.items()))
        if sub.type_url == CLUSTER:
            self._clusters_changed(changed)
        return Response(
            type_url=sub.type_url,
            version=_version(sending),
            nonce=nonce,
            resources=tuple(names.under_name(r, n) for n, r in sending.items()),
            removed=tuple(gone) if self.delta else (),
            delta=self.delta,
        )

    def _clusters_changed(self, changed: list[str]) -> None:
        """A changed cluster warms until its endpoints come again, in both forms (P4)."""
        config = self._snapshot.config
        endpoints = config.of_type(ENDPOINT) if config is not None else {}
        self._await_endpoints(self._awaiting_endpoints().union(n for n in changed if n in endpoints))

    def _awaiting_endpoints(self) -> frozenset[str]:
        """Clusters that were sent and whose endpoints were not sent since."""
        sub = self._subscriptions.get(ENDPOINT)
        return self._resend if sub is None else sub.resend

    def _await_endpoints(self, clusters: frozenset[str]) -> None:
        sub = self._subscriptions.get(ENDPOINT)
        if sub is None:
            self._resend = clusters
        else:
            sub.resend = clusters

    def _referrers_settled(self) -> bool:
        """True when nothing that the client holds, or is about to accept, needs a removed cluster."""
        for type_url in _REFERRERS:
            sub = self._subscriptions.get(type_url)
            if sub is None:
                continue
            desired = self._desired(sub)
            if sub.outstanding or sub.changed(desired) or not sub.refused.isdisjoint(desired):
                return False
            if sub.is_root and any(n not in desired for n in sub.sent):
                return False
        return True

    def _begin(self, sub: Subscription) -> None:
        if sub.type_url == ENDPOINT:
            sub.resend |= self._resend
            self._resend = NONE


class SotwSession(Session):
    """A stream in the state-of-the-world form."""

    __slots__ = ()
    delta = False

    def on_request(self, request: discovery_pb2.DiscoveryRequest) -> list[Response]:
        """Answer a DiscoveryRequest.

        Raises:
            SessionError: the stream must end with the status of the error's category.
        """
        check_names(request.resource_names, self._limits, total=len(request.resource_names))
        sub, first = self._open(request.type_url, request.node.id)
        if sub is None:
            return []
        if first:
            # Nonces belong to a stream: whatever the first request carries says nothing (S-02, S-13).
            self._begin(sub)
        else:
            nonce = request.response_nonce
            current = nonce == sub.nonce and bool(nonce)
            error = request.error_detail.message if request.HasField("error_detail") else None
            self._answer(sub, nonce, error)
            # A response is on the way: the client will speak again when it has it (S-04, F-76). With
            # none on the way, a client may name the last response that it liked, or none at all.
            if not current and (sub.outstanding or nonce not in {"", sub.good_nonce}):
                return self._reconcile()
        # Interned: the proxies of a node ask for the same names.
        listed = dict.fromkeys(map(sys.intern, request.resource_names))
        starred = WILDCARD in listed and self._service.has_wildcard(sub.type_url)
        if starred:
            del listed[WILDCARD]
        if listed or starred:
            sub.explicit = True
        sub.wildcard = starred or (not sub.explicit and self._service.has_wildcard(sub.type_url))
        sub.names = listed
        sub.drop_unwanted()
        return self._reconcile()

    def fetch(self, request: discovery_pb2.DiscoveryRequest) -> Response:
        """Answer a single fetch: all that exists of what is asked, in one response.

        Raises:
            SessionError: as for a stream.
        """
        check_names(request.resource_names, self._limits, total=len(request.resource_names))
        sub, _ = self._open(request.type_url, request.node.id)
        desired: dict[str, Resource] = {}
        if sub is not None:
            sub.names = dict.fromkeys(request.resource_names)
            sub.wildcard = not sub.names or WILDCARD in sub.names
            sub.names.pop(WILDCARD, None)
            desired = self._desired(sub)
        return Response(
            type_url=SECRET if not request.type_url else request.type_url,
            version=_version(desired),
            nonce=self._new_nonce(),
            resources=tuple(names.under_name(r, n) for n, r in desired.items()),
        )


class DeltaSession(Session):
    """A stream in the incremental form."""

    __slots__ = ()
    delta = True

    def on_request(self, request: discovery_pb2.DeltaDiscoveryRequest) -> list[Response]:
        """Answer a DeltaDiscoveryRequest.

        Raises:
            SessionError: the stream must end with the status of the error's category.
        """
        known = request.initial_resource_versions
        for listed in (request.resource_names_subscribe, request.resource_names_unsubscribe, known):
            check_names(listed, self._limits, total=len(listed))
        sub, first = self._open(request.type_url, request.node.id)
        if sub is None:
            return []
        if request.response_nonce and not first:
            error = request.error_detail.message if request.HasField("error_detail") else None
            self._answer(sub, request.response_nonce, error)
        # Changes of subscription count whatever the nonce says (S-04).
        self._subscribe(sub, request, first=first)
        if first:
            self._begin(sub)
            for name, version in known.items():
                if sub.wants(name):
                    sub.sent[name] = version  # S-19: only what differs is sent
        return self._reconcile()

    def _subscribe(
        self, sub: Subscription, request: discovery_pb2.DeltaDiscoveryRequest, *, first: bool
    ) -> None:
        has_wildcard = self._service.has_wildcard(sub.type_url)
        if first and not request.resource_names_subscribe:
            sub.wildcard = has_wildcard
        for name in request.resource_names_subscribe:
            if name == WILDCARD and has_wildcard:
                sub.wildcard = True
            else:
                sub.names[sys.intern(name)] = None
                sub.forget(name)  # asked for again = wanted again, whatever we believe (S-05)
        for name in request.resource_names_unsubscribe:
            if name == WILDCARD and has_wildcard:
                sub.wildcard = False
            else:
                sub.names.pop(name, None)
                sub.forget(name)
        check_names((), self._limits, total=len(sub.names))
        sub.drop_unwanted()


def _version(resources: Mapping[str, Resource]) -> str:
    """Content hash of a response: equal contents, equal version (S-12)."""
    digest = hashlib.sha256()
    for name in sorted(resources):
        digest.update(f"{name}={resources[name].version};".encode())
    return digest.hexdigest()[:16]
