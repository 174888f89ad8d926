"""`python -m injector upkeep` and `certificate`: what keeps the webhook going, outside of its process.

`certificate` runs beside each webhook in its pod: it writes the serving pair to memory that both mount.
`upkeep` runs anywhere, with the rights to write: of all its processes the holder of a Lease keeps caBundle
and key sets. Neither serves admissions, and the webhook has none of these rights.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry

from injector import ca_bundle, jwks_upkeep
from injector.bundle_upkeep import BundleUpkeep
from injector.ca_bundle import Entry
from injector.config import InjectorConfig
from injector.config_parts import Address
from injector.core.nodes import DATA_KEY as NODES_KEY
from injector.core.nodes import NodeFacts, read_node
from injector.events import EventSink
from injector.jwks_fetch import Fetcher
from injector.jwks_upkeep import JwksUpkeep
from injector.lease import Election
from injector.metrics import UpkeepMetrics
from injector.node_versions import NODES, NodesUpkeep
from injector.plain import Context, Page, PageServer, health_pages
from injector.policy_upkeep import PolicyUpkeep
from injector.published import PublishedText
from injector.serving import Serving
from mesh.errors import MeshError
from mesh.kube import access
from mesh.kube.api import KubeApi
from mesh.kube.client import KubeClient
from mesh.kube.reflector import Collection, Reflector
from mesh.kube.store import Store
from mesh.obs.health import Health
from mesh.obs.logs import logger
from mesh.obs.metrics import exposition, show_process
from mesh.policy.model import API_VERSIONS, RequestAuthentication
from mesh.policy.parse import parse_policy

USER_AGENT: Final = "gatehouse-upkeep"
_DEBOUNCE_SECONDS: Final = 0.2
_MIN_PAUSE, _MAX_PAUSE = 1.0, 60.0

_log = logger(__name__)


class Process:
    """What both commands share: stop, health, metrics, and the ports for them.

    Args:
        listen: plain; without /metrics where `secure` has them.
        secure: address and certificate of the pages by TLS.
    """

    def __init__(
        self, listen: Address | None, *checks: str, secure: tuple[Address, Context] | None = None
    ) -> None:
        self.stop = threading.Event()
        self.wake = threading.Event()
        self._wakes = [self.wake]
        self.health = Health(*checks)
        self.registry = CollectorRegistry()
        self.metrics = UpkeepMetrics(self.registry)
        show_process(self.registry)
        self.metrics.renewals.labels(result="failed")  # from 0 on: else the first would be no increase
        self._servers: list[PageServer] = []
        if listen is not None:
            pages = self._pages() if secure is None else health_pages(self.health)
            self._servers.append(PageServer(pages, listen.host, listen.port))
        if secure is not None:
            at, context = secure
            self._servers.append(PageServer(self._pages(), at.host, at.port, context=context))

    @property
    def ports(self) -> tuple[int, ...]:
        """Of the servers of pages, the plain one first."""
        return tuple(server.port for server in self._servers)

    def also_wakes(self, event: threading.Event) -> None:
        """Set this event whenever all loops are to look."""
        self._wakes.append(event)

    def rouse(self) -> None:
        """Have all loops look now."""
        for event in self._wakes:
            event.set()

    def end(self) -> None:
        """Ask everything to end."""
        self.stop.set()
        self.rouse()

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Health and metrics are served inside."""
        for server in self._servers:
            server.start()
        try:
            yield
        finally:
            self.end()
            for server in self._servers:
                server.stop()

    def attempt(self, part: str, work: Callable[[], None]) -> bool:
        """Run one part; its failure is told and does not stop the others."""
        try:
            work()
        except MeshError as error:
            _log.warning("upkeep failed", part=part, error=error)
            self._told(part, str(error.code), error.public)
            return False
        except Exception:  # noqa: BLE001 - one part's fault must not end the others for good
            _log.exception("upkeep failed", part=part)
            self._told(part, "internal", "an internal error; see the log")
            return False
        self._told(part, "ok", "")
        return True

    def _told(self, part: str, result: str, problem: str) -> None:
        self.metrics.runs.labels(part=part, result=result).inc()
        if not problem:
            self.metrics.last_success.labels(part=part).set(time.time())
        self.health.set(part, ok=not problem, detail=problem)

    def _pages(self) -> dict[str, Page]:
        def metrics() -> tuple[int, str, bytes]:
            body, kind = exposition(self.registry)
            return 200, kind, body

        return {**health_pages(self.health), "/metrics": metrics}


def run(config: InjectorConfig, *, certificate: bool) -> int:
    """Run until TERM or INT; the exit code.

    Args:
        certificate: be the keeper of the certificate, else upkeep.

    Raises:
        MeshError: the credentials for the API server cannot be used.
        OSError: a port for health and metrics cannot be bound.
    """
    if certificate:
        process = Process(
            config.certificate.listen, "certificate", secure=secure_pages(config, config.certificate.metrics)
        )
        work: Callable[[Process, InjectorConfig], None] = keep_certificate
    else:
        process = Process(config.listen.plain, secure=secure_pages(config, config.listen.metrics))
        work = keep_up
    for number in (signal.SIGTERM, signal.SIGINT):
        # A thread, because `Event.set` in a handler may wait for a lock that the main thread holds.
        signal.signal(number, lambda *_: threading.Thread(target=process.end).start())
    with process.serving():
        work(process, config)
    return 0


def secure_pages(config: InjectorConfig, at: Address | None) -> tuple[Address, Context] | None:
    """Address and certificate of pages by TLS, where there are such."""
    return None if at is None else (at, Serving(config.serving_dir).context)


def keep_certificate(process: Process, config: InjectorConfig) -> None:
    """The keeper's loop; ends when the process is stopped."""
    api = KubeClient(access.find(config.kubeconfig), user_agent=USER_AGENT)
    keep_pair(
        process,
        config,
        config.dns_names,
        lambda: ca_bundle.list_entries(api, config.upkeep.webhook_selector, config.namespace, config.service),
    )


def keep_pair(
    process: Process,
    config: InjectorConfig,
    names: tuple[str, ...],
    entries: Callable[[], Sequence[Entry]],
) -> None:
    """Keep a serving pair with these names until the process is stopped; for a thread of its own."""
    from injector import csr_client  # loads gRPC, which upkeep does without unless metrics go by TLS
    from injector.keeper import Keeper

    def renewed(result: str, end: dt.datetime | None) -> None:
        process.metrics.renewals.labels(result=result).inc()
        if end is not None:
            process.metrics.certificate_expiry.set(end.timestamp())

    keeper = Keeper(
        config.serving_dir,
        names=names,
        issue=lambda now: csr_client.issue(config.certificate, names, now),
        roots=lambda: csr_client.read_roots(config.certificate.root_file),
        entries=entries,
        renewed=renewed,
    )
    while not process.stop.is_set():
        wait = keeper.step(dt.datetime.now(dt.UTC))
        process.health.set("certificate", ok=not keeper.problem, detail=keeper.problem)
        process.stop.wait(wait)


def keep_up(process: Process, config: InjectorConfig) -> None:
    """The leader's loop; ends when the process is stopped."""
    found = access.find(config.kubeconfig)
    api = KubeClient(found, user_agent=USER_AGENT)
    election = Election(
        KubeClient(found, user_agent=USER_AGENT, timeout=dt.timedelta(seconds=4)),
        namespace=config.namespace,
        name=config.upkeep.lease,
        identity=f"{socket.gethostname()}_{os.getpid()}_{os.urandom(4).hex()}",
    )
    bundle, watches = _bundle(process, config, api), _watch_bundle(process, config, api)
    jwks, more = _jwks(process, config, api)
    nodes, nodes_watches = _nodes(process, config, api)
    policies = _policies(process, config)
    watches += more + nodes_watches
    for watch in watches:
        watch.start()
    elector = threading.Thread(target=_elect, args=(process, election), name="election", daemon=True)
    elector.start()
    if config.listen.metrics is not None:
        threading.Thread(
            target=keep_pair,
            args=(process, config, config.upkeep_names, tuple),  # no webhook entry has to trust it
            name="certificate",
            daemon=True,
        ).start()
    interval = config.upkeep.interval.total_seconds()
    teller = threading.Thread(
        target=_tell_policies, args=(process, interval, election, policies), name="policies", daemon=True
    )
    try:
        if policies is not None:
            policies.start()
            teller.start()
        _lead(process, interval, election, _Parts(bundle, jwks, nodes))
    finally:
        process.end()
        if policies is not None:
            policies.stop()
        if teller.is_alive():
            teller.join(5)
        for watch in watches:
            watch.stop()
        elector.join(5)
        election.release()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the leader looks after; None = turned off."""

    bundle: BundleUpkeep
    jwks: JwksUpkeep | None
    nodes: NodesUpkeep | None


def _elect(process: Process, election: Election) -> None:
    while not process.stop.is_set():
        was = election.leading
        election.step()
        process.metrics.leader.set(election.leading)
        if election.leading and not was:
            process.rouse()
        process.stop.wait(election.pause)


def _lead(
    process: Process,
    interval: float,
    election: Election,
    parts: _Parts,
) -> None:
    bundle, jwks, nodes = parts.bundle, parts.jwks, parts.nodes
    failures, led = 0, False
    while not process.stop.is_set():
        good = True
        if election.leading:
            good = process.attempt(
                "ca_bundle",
                lambda: _told_bad(process, bundle.step(dt.datetime.now(dt.UTC), _leading(election))),
            )
            if jwks is not None:
                good &= process.attempt("jwks", lambda: jwks.step(_leading(election)))
                process.metrics.jwks_sets.set(jwks.published)
                process.metrics.jwks_stale.set(jwks.stale)
            if nodes is not None:
                good &= process.attempt("nodes", lambda: nodes.step(_leading(election)))
        elif led:
            for name in ("ca_bundle", "jwks", "nodes"):
                process.health.forget(name)
        led = election.leading
        failures = 0 if good else failures + 1
        pause = interval if good else min(_MAX_PAUSE, interval, _MIN_PAUSE * 2.0 ** min(failures, 10))
        process.wake.wait(min(pause, 5.0) if jwks is not None and jwks.stale else pause)
        if not process.stop.is_set() and process.wake.is_set():
            # Changes come in bursts: one look for all of them.
            process.stop.wait(_DEBOUNCE_SECONDS)
            process.wake.clear()


def _tell_policies(process: Process, interval: float, election: Election, policies: PolicyUpkeep) -> None:
    failures, led = 0, False
    while not process.stop.is_set():
        pause = interval
        if election.leading:
            good = process.attempt("policies", lambda: policies.step(_leading(election)))
            failures = 0 if good else failures + 1
            pause = (
                min(interval, policies.rest)
                if good
                else min(_MAX_PAUSE, _MIN_PAUSE * 2.0 ** min(failures, 10))
            )
        elif led:
            process.health.forget("policies")
            process.metrics.refused_policies.set(0)
        led = election.leading
        policies.wake.wait(pause)
        if not process.stop.is_set() and policies.wake.is_set():
            process.stop.wait(_DEBOUNCE_SECONDS)
            policies.wake.clear()


def _leading(election: Election) -> Callable[[], bool]:
    return lambda: election.leading


def _told_bad(process: Process, bad: int) -> None:
    if bad:
        process.health.set(
            "ca_bundle", ok=False, detail=f"{bad} entries whose caBundle did not verify the service"
        )


def _bundle(process: Process, config: InjectorConfig, api: KubeApi) -> BundleUpkeep:
    name = config.dns_names[0]
    at = config.upkeep.verify_address or Address(name, 443)
    return BundleUpkeep(
        api,
        namespace=config.namespace,
        service=config.service,
        selector=config.upkeep.webhook_selector,
        roots_config_map=config.upkeep.roots_config_map,
        call=lambda bundle: ca_bundle.call(at.host, at.port, name, bundle),
        overlap=config.upkeep.overlap,
        metrics=process.metrics,
    )


def _watch_bundle(process: Process, config: InjectorConfig, api: KubeApi) -> list[Reflector[str]]:
    """Wake up when somebody changes a configuration of ours, or the roots."""
    collections = [
        Collection(
            path=f"/apis/admissionregistration.k8s.io/v1/{kind}",
            name=kind,
            query={"labelSelector": config.upkeep.webhook_selector},
        )
        for kind in ca_bundle.KINDS
    ]
    collections.append(
        Collection(
            path=f"/api/v1/namespaces/{config.namespace}/configmaps",
            name="roots",
            query={"fieldSelector": f"metadata.name={config.upkeep.roots_config_map}"},
        )
    )
    return [_watch(process, api, collection, _version) for collection in collections]


def _version(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("resourceVersion", ""))


def _watch(
    process: Process, api: KubeApi, collection: Collection, read: Callable[[Mapping[str, Any]], Any]
) -> Reflector[Any]:
    store: Store[Any] = Store()
    store.subscribe(lambda _: process.wake.set())
    return Reflector(api, collection, read, store, monotonic=time.monotonic)


def _jwks(
    process: Process, config: InjectorConfig, api: KubeApi
) -> tuple[JwksUpkeep | None, list[Reflector[Any]]]:
    jwks = config.upkeep.jwks
    if not jwks.enabled:
        return None, []
    store: Store[tuple[str, ...]] = Store()
    store.subscribe(lambda _: process.wake.set())
    reflector: Reflector[Any] = Reflector(
        api,
        Collection(
            path=f"/apis/{API_VERSIONS[0]}/requestauthentications",
            name="requestauthentications",
            optional=True,
        ),
        addresses_of,
        store,
        monotonic=time.monotonic,
    )
    context = ssl.create_default_context()
    if jwks.ca_file is not None:
        context.load_verify_locations(jwks.ca_file)
    fetcher = Fetcher(
        private=tuple(ipaddress.ip_network(text) for text in jwks.private_networks),
        allow_http=jwks.allow_http,
        context=context,
    )
    upkeep = JwksUpkeep(
        PublishedText(api, namespace=config.namespace, name=jwks.config_map, key=jwks_upkeep.DATA_KEY),
        fetch=fetcher.fetch,
        addresses=lambda: [url for urls in store.values() for url in urls] if store.synced else None,
        interval=jwks.interval.total_seconds(),
        told=lambda result: process.metrics.jwks_fetches.labels(result=result).inc(),
    )
    return upkeep, [reflector]


def _nodes(
    process: Process, config: InjectorConfig, api: KubeApi
) -> tuple[NodesUpkeep | None, list[Reflector[Any]]]:
    found = config.upkeep.nodes
    if not found.enabled:
        return None, []
    store: Store[NodeFacts] = Store()
    store.subscribe(lambda _: process.wake.set())
    watch: Reflector[Any] = Reflector(api, NODES, read_node, store, monotonic=time.monotonic)
    published = PublishedText(api, namespace=config.namespace, name=found.config_map, key=NODES_KEY)
    return NodesUpkeep(published, lambda: store.values() if store.synced else None), [watch]


def _policies(process: Process, config: InjectorConfig) -> PolicyUpkeep | None:
    if not (config.events or config.upkeep.policy_status):
        return None
    found = access.find(config.kubeconfig)
    upkeep = PolicyUpkeep(
        KubeClient(found, user_agent=USER_AGENT),
        events=EventSink(KubeClient(found, user_agent=USER_AGENT)) if config.events else None,
        status=config.upkeep.policy_status,
        metrics=process.metrics,
    )
    process.also_wakes(upkeep.wake)
    return upkeep


def addresses_of(item: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Where the keys of a RequestAuthentication are: each jwksUri, or the issuer's own description."""
    policy = parse_policy(item).policy
    if not isinstance(policy, RequestAuthentication):
        return None
    return tuple(rule.keys_address for rule in policy.rules if rule.keys_address) or None
