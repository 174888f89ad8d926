"""The authority's parts that need an API server, put together: leader, keys, live pods, published roots."""

from __future__ import annotations

import datetime as dt
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ca.agent_sharing import AgentSharing
from ca.agents import AgentBook
from ca.audit import Audit
from ca.authn import Caller, Method, Presented
from ca.authn.claims import TokenPolicy
from ca.authn.cluster_keys import ClusterKeys, issuer_of
from ca.authn.jwt import KeySource, TokenAuthenticator, bearer
from ca.authn.token_review import TokenReviewer
from ca.config import CaConfig
from ca.distribute import (
    NAMESPACES,
    Distributor,
    Owner,
    Published,
    config_maps,
    read_namespace,
    read_published,
)
from ca.keystore import KeyStore, KeyStoreConfig
from ca.keystore_secret import SecretKeyStore, SecretPlace
from ca.metrics import CaMetrics
from ca.pods import PODS, LivePods, PodFact, read_pod
from ca.rotator import Counts, Rotator
from ca.trust_bundle import TrustBundle
from mesh.clock import Clock
from mesh.kube.access import Access, from_kubeconfig, in_cluster
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.kube.client import KubeClient
from mesh.kube.lease import Elector, LeaseConfig
from mesh.kube.reflector import Reflector
from mesh.kube.store import Store

USER_AGENT: Final = "gatehouse-ca"
REQUEST_TIMEOUT: Final = dt.timedelta(seconds=5)  # somebody waits for the answer
LIST_TIMEOUT: Final = dt.timedelta(seconds=30)
OWNER_KEPT: Final = 30.0  # seconds


def access_to(config: CaConfig) -> Access:
    """Where the API server is.

    Raises:
        KubeError: neither a kubeconfig nor a pod.
    """
    file = config.cluster.kubeconfig
    return from_kubeconfig(file) if file is not None else in_cluster()


def secret_place(config: CaConfig) -> SecretPlace:
    """Where the keys are."""
    cluster = config.cluster
    return SecretPlace(
        namespace=cluster.namespace,
        name=cluster.secret,
        root_config_map=cluster.root_config_map,
        force_new_root=cluster.force_new_root,
    )


@dataclass(frozen=True, slots=True)
class ClusterTokens:
    """Callers with a token of this cluster: good by itself, of a live pod, and confirmed when asked for."""

    local: TokenAuthenticator
    pods: LivePods
    reviewer: TokenReviewer | None
    method: Method = Method.TOKEN

    def authenticate(self, presented: Presented, now: dt.datetime) -> Caller | None:
        """See `ca.authn.Authenticator`. The cheap checks come first.

        Raises:
            AuthnError: a bad token, a pod that does not live, or neither can be told now.
        """
        caller = self.local.authenticate(presented, now)
        if caller is None:
            return None
        self.pods.check(caller, now)
        if self.reviewer is not None:
            self.reviewer.review(bearer(presented.authorization), caller)
        return caller


class _Watched:
    """Counts what reflectors report."""

    def __init__(self, metrics: CaMetrics) -> None:
        self._metrics = metrics

    def relisted(self, resource: str, items: int) -> None:  # noqa: ARG002 - as `Events`
        self._metrics.watch_relists.labels(resource=resource).inc()

    def event(self, resource: str) -> None:
        self._metrics.watch_events.labels(resource=resource).inc()

    def failed(self, resource: str, code: str) -> None:
        self._metrics.watch_failures.labels(resource=resource, code=code).inc()


class Cluster:
    """Everything of a worker that talks to the API server.

    Raises:
        KubeError: no access, or no answer at the start.
    """

    def __init__(
        self,
        config: CaConfig,
        metrics: CaMetrics,
        clock: Clock,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._monotonic = monotonic
        access = access_to(config)
        self.api = KubeClient(access, user_agent=USER_AGENT, timeout=REQUEST_TIMEOUT)
        self._lists = KubeClient(access, user_agent=USER_AGENT, timeout=LIST_TIMEOUT)
        self._distributor: Distributor | None = None
        self._reflectors: dict[str, Reflector[Any]] = {}
        self._owner: tuple[float, Owner | None] | None = None
        self.name = config.cluster.replica or socket.gethostname()
        holder = f"{self.name}_{os.getpid()}"
        lease = LeaseConfig(namespace=config.cluster.namespace, name=config.cluster.lease, holder=holder)
        self.elector = Elector(self.api, lease, clock=clock, monotonic=monotonic, changed=self._led)
        pods: Store[PodFact] = Store()
        self._reflectors["pods"] = self._reflector(PODS, read_pod, pods)
        self.pods = LivePods(
            pods,
            failing=lambda: self._reflectors["pods"].problem is not None,
            monotonic=monotonic,
            patience=config.cluster.pod_wait,
        )
        self.agents = AgentBook(pods, config.cluster.agents)
        """What node agents report, see docs/adr/0014."""
        self.agent_sharing = AgentSharing(
            self.api,
            config.cluster.namespace,
            holder,
            self.agents,
            leading=lambda: self.elector.leading,
            monotonic=monotonic,
        )

    # --- what the authority asks for ---

    def keystore(self, config: KeyStoreConfig, now: dt.datetime) -> SecretKeyStore:
        """The keys in the Secret; made when there never were any. Errors: see `SecretKeyStore.open`."""
        place = secret_place(self._config)
        return SecretKeyStore.open(self.api, place, config, now, may_renew=lambda: self.elector.leading)

    def rotator(self, keystore: KeyStore | SecretKeyStore, counts: Counts, audit: Audit) -> Rotator:
        """Drives the rotation of roots where this replica leads."""
        return Rotator(
            self.api,
            secret_place(self._config),
            keystore,
            self._config.rotation.settings(self._config.issue.max_lifetime, self._config.reload_interval),
            counts=counts,
            unpublished=self.unpublished,
            leading=lambda: self.elector.leading,
            writer=self.name,
            metrics=self._metrics,
            audit=audit,
        )

    def issuer(self) -> str:
        """The token issuer: the configured one, or what the API server says."""
        return self._config.token.issuer or issuer_of(self.api)

    def token_keys(self) -> ClusterKeys:
        """Keys of the API server."""
        return ClusterKeys(self.api, every=self._config.cluster.key_refresh, monotonic=self._monotonic)

    def authenticator(self, policy: TokenPolicy, keys: KeySource) -> ClusterTokens:
        """For callers with a token."""
        reviewer = None
        cluster = self._config.cluster
        if cluster.token_review:
            reviewer = TokenReviewer(
                self.api,
                sorted(policy.audiences),
                monotonic=self._monotonic,
                rate=cluster.token_review_rate,
                burst=max(1, round(2 * cluster.token_review_rate)),
                count=lambda result: self._metrics.token_reviews.labels(result=result).inc(),
            )
        return ClusterTokens(TokenAuthenticator(policy, keys), self.pods, reviewer)

    def publish(self, bundle: Callable[[], Sequence[str]]) -> None:
        """Have the roots written into every namespace, once started and leading."""
        name = self._config.cluster.root_config_map
        namespaces: Store[bool] = Store()
        published: Store[Published] = Store()
        self._reflectors["namespaces"] = self._reflector(NAMESPACES, read_namespace, namespaces)
        self._reflectors["config_maps"] = self._reflector(config_maps(name), read_published, published)
        self._distributor = Distributor(
            self.api,
            name,
            bundle=bundle,
            leading=lambda: self.elector.leading,
            namespaces=namespaces,
            published=published,
            monotonic=self._monotonic,
            count=lambda result: self._metrics.root_writes.labels(result=result).inc(),
            owner=self._find_owner,
            also=self._trust_bundle(bundle),
        )

    def _trust_bundle(self, bundle: Callable[[], Sequence[str]]) -> Callable[[], None]:
        if not self._config.cluster.publish_trust_bundle:
            return lambda: None
        return TrustBundle(
            self.api,
            bundle=bundle,
            owner=self._find_owner,
            monotonic=self._monotonic,
            count=lambda result: self._metrics.root_writes.labels(result=result).inc(),
        ).step

    # --- life ---

    def start(self) -> None:
        """Watch, stand for election, and publish."""
        for reflector in self._reflectors.values():
            reflector.start()
        self.elector.start()
        if self._distributor is not None:
            self._distributor.start()

    def stop(self) -> None:
        """Give up the Lease and end all threads soon."""
        if self._distributor is not None:
            self._distributor.stop()
        self.elector.stop()
        self.elector.release()
        for reflector in self._reflectors.values():
            reflector.stop()
        self._lists.close()
        self.api.close()

    def bundle_changed(self) -> None:
        """Publish soon."""
        if self._distributor is not None:
            self._distributor.poke()

    # --- what it says of itself ---

    def pods_state(self) -> tuple[str, KubeError | None]:
        """What keeps the authority from working, and what somebody should look at."""
        problem = self._reflectors["pods"].problem
        if not self.pods.synced:
            return "the pods of the cluster were not listed yet", problem
        return "", problem

    def publish_problem(self) -> str:
        """Why the roots are not everywhere; empty when they are, or another replica does it."""
        return self._distributor.problem if self._distributor is not None and self.elector.leading else ""

    def unpublished(self) -> tuple[str, ...] | None:
        """Namespaces without the roots as they are now; None while that is not known."""
        if self._distributor is None:
            return ()
        return tuple(self._distributor.missing()) if self._distributor.synced else None

    def refresh_gauges(self) -> None:
        """Bring gauges up to date before they are shown."""
        metrics = self._metrics
        metrics.leader.set(int(self.elector.leading))
        metrics.live_pods.set(len(self.pods))
        for name, reflector in self._reflectors.items():
            silent = reflector.silent_seconds()
            if silent is not None:
                metrics.watch_silence.labels(resource=name).set(silent)
        if self._distributor is not None:
            metrics.namespaces.set(self._distributor.wanted)
            metrics.namespaces_wrong.set(len(self._distributor.missing()))

    def _reflector(self, collection: Any, read: Callable[[Any], Any], store: Store[Any]) -> Reflector[Any]:
        return Reflector(
            self._lists,
            collection,
            read,
            store,
            events=_Watched(self._metrics),
            monotonic=self._monotonic,
        )

    def _led(self, _leading: bool) -> None:
        self.bundle_changed()

    def _find_owner(self) -> Owner | None:
        name = self._config.cluster.owner_cluster_role
        if not name:
            return None
        held, now = self._owner, self._monotonic()
        if held is None or now - held[0] > OWNER_KEPT:
            held = self._owner = (now, _owner(self.api, name))
        return held[1]


def _owner(api: KubeApi, name: str) -> Owner | None:
    group = "rbac.authorization.k8s.io/v1"
    try:
        found = api.get(f"/apis/{group}/clusterroles/{name}")
    except KubeError as e:
        if e.code is KubeCode.NOT_FOUND:
            return None
        raise
    uid = (found.get("metadata") or {}).get("uid") if isinstance(found, dict) else None
    return Owner(api_version=group, kind="ClusterRole", name=name, uid=uid) if isinstance(uid, str) else None
