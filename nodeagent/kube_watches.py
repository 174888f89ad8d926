"""The watches of a node's agent: what of the cluster it needs, kept current on threads of their own.

Read rights only, on: pods, services, endpointslices, the policies of security.istio.io, and one ConfigMap
by name. `docs/csi.md` has the exact rules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from mesh.errors import Category, Code, MeshError
from mesh.kube.api import KubeApi
from mesh.kube.discovery import Capabilities
from mesh.kube.reflector import Collection, Reflector
from mesh.kube.store import Store
from mesh.obs.metrics import MetricSet, counter, gauge
from mesh.policy.model import AUTHORIZATION_POLICY, GROUP, PEER_AUTHENTICATION, REQUEST_AUTHENTICATION
from nodeagent.core.kube_objects import (
    Interner,
    KeySetsRecord,
    PodRecord,
    PolicyRecord,
    ServiceRecord,
    SliceRecord,
    read_key_sets,
    read_pod,
    read_policy,
    read_service,
    read_slice,
)
from nodeagent.core.kube_world import KEY_SETS_NAME, Snapshot
from nodeagent.core.volume import Volume

POLICY_VERSIONS: Final = ("v1", "v1beta1")
_PLURALS: Final = {
    PEER_AUTHENTICATION: "peerauthentications",
    REQUEST_AUTHENTICATION: "requestauthentications",
    AUTHORIZATION_POLICY: "authorizationpolicies",
}


class WatchCode(Code):
    """Why the cluster cannot be watched."""

    NO_SLICES = "kube_no_endpoint_slices"


class WatchError(MeshError):
    """The cluster lacks what the agent needs."""


class KubeMetrics(MetricSet):
    """Labels hold the short names of collections."""

    relists = counter(
        "gatehouse_agent_watch_lists_total", "Complete lists read from the API server.", labels=("resource",)
    )
    listed = gauge(
        "gatehouse_agent_watch_listed_objects", "Objects in the newest complete list.", labels=("resource",)
    )
    events = counter(
        "gatehouse_agent_watch_events_total", "Changes received from the API server.", labels=("resource",)
    )
    failures = counter(
        "gatehouse_agent_watch_failures_total",
        "Lists and watches that ended with an error.",
        labels=("resource", "code"),
    )
    volumes = gauge("gatehouse_agent_volumes", "Volumes published on this node.")
    csi_calls = counter(
        "gatehouse_agent_csi_calls_total",
        "The kubelet's calls by what became of them: ok, or a code.",
        labels=("call", "result"),
    )

    def csi_called(self, call: str, result: str) -> None:
        """A call of the kubelet, `publish` or `unpublish`, was answered."""
        self.csi_calls.labels(call=call, result=result).inc()

    def relisted(self, resource: str, items: int) -> None:
        """See `mesh.kube.reflector.Events`."""
        self.relists.labels(resource=resource).inc()
        self.listed.labels(resource=resource).set(items)

    def event(self, resource: str) -> None:
        """See `mesh.kube.reflector.Events`."""
        self.events.labels(resource=resource).inc()

    def failed(self, resource: str, code: str) -> None:
        """See `mesh.kube.reflector.Events`."""
        self.failures.labels(resource=resource, code=code).inc()


class KubeWatches:
    """Stores and reflectors.

    Args:
        api: the API server.
        capabilities: decide the versions.
        node: name of this node.
        namespace: of the installation.
        changed: called on any thread after any change.
        metrics: told what happens.
    """

    def __init__(
        self,
        api: KubeApi,
        capabilities: Capabilities,
        *,
        node: str,
        namespace: str,
        changed: Callable[[], None],
        metrics: KubeMetrics,
    ) -> None:
        self._api = api
        self._changed = changed
        self._metrics = metrics
        self._reflectors: list[Reflector[Any]] = []
        self._stores: dict[str, Store[Any]] = {}
        interner = Interner()
        self.pods: Store[PodRecord] = self._add(
            Collection(path="/api/v1/pods", name="pods"), partial(read_pod, node=node, interner=interner)
        )
        self.services: Store[ServiceRecord] = self._add(
            Collection(path="/api/v1/services", name="services"), partial(read_service, interner=interner)
        )
        self.slices: Store[SliceRecord] = self._add(
            Collection(path=_slices_path(capabilities), name="endpointslices"), read_slice
        )
        version = policy_version(capabilities)
        self.policies: dict[str, Store[PolicyRecord]] = {
            kind: self._add(
                Collection(path=f"/apis/{GROUP}/{version}/{plural}", name=plural, optional=True),
                partial(read_policy, kind=kind, version=version),
            )
            for kind, plural in _PLURALS.items()
        }
        self.key_sets: Store[KeySetsRecord] = self._add(
            Collection(
                path=f"/api/v1/namespaces/{namespace}/configmaps",
                name="configmaps",
                query={"fieldSelector": f"metadata.name={KEY_SETS_NAME}"},
            ),
            read_key_sets,
        )

    def start(self) -> None:
        """Begin to watch."""
        for reflector in self._reflectors:
            reflector.start()

    def stop(self) -> None:
        """End all watches at their next event; the threads end with the process at the latest."""
        for reflector in self._reflectors:
            reflector.stop()

    def missing(self) -> Iterator[str]:
        """Names of collections whose first list has not come, with the reason where there is one."""
        for (name, store), reflector in zip(self._stores.items(), self._reflectors, strict=True):
            if not store.synced:
                problem = reflector.problem
                yield f"{name} ({problem.public})" if problem is not None else name

    def snapshot(self, volumes: tuple[Volume, ...]) -> Snapshot:
        """Records as they are now."""
        if any(not store.synced for store in self._stores.values()):
            return Snapshot(volumes=volumes, complete=False)
        return Snapshot(
            volumes=volumes,
            pods=self.pods.items(),
            services=self.services.items(),
            slices=self.slices.items(),
            policies={
                (kind, *key): record
                for kind, store in self.policies.items()
                for key, record in store.items().items()
            },
            key_sets=next(iter(self.key_sets.values()), None),
        )

    def _add(self, collection: Collection, read: Callable[[Mapping[str, Any]], Any]) -> Store[Any]:
        store: Store[Any] = Store()
        store.subscribe(lambda _: self._changed())
        self._stores[collection.name] = store
        self._reflectors.append(
            Reflector(self._api, collection, read, store, events=self._metrics, monotonic=time.monotonic)
        )
        return store


def policy_version(capabilities: Capabilities) -> str:
    """The version of the policy API to read; `v1` when it is not installed (yet)."""
    served = (v for v in POLICY_VERSIONS if capabilities.serves(GROUP, v))
    return next(served, POLICY_VERSIONS[0])


def _slices_path(capabilities: Capabilities) -> str:
    if not capabilities.endpoint_slices:
        raise WatchError(
            WatchCode.NO_SLICES,
            "the cluster serves no EndpointSlices (discovery.k8s.io/v1 or v1beta1); Kubernetes 1.20 or newer"
            " is needed",
            category=Category.FAILED_PRECONDITION,
        )
    return f"/apis/discovery.k8s.io/{capabilities.endpoint_slices}/endpointslices"
