"""The parts of one worker of the webhook, made after the fork: nothing here starts a thread before.

Ready means: the listener answers a TLS call with the certificate in force, the configuration in the
file is read, the namespaces are known, and the process is not being drained.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from injector import ca_bundle
from injector import config as configuration
from injector.admission import Admission
from injector.app import create_app
from injector.config import InjectorConfig
from injector.core.nodes import NodesAndServer
from injector.core.settings import Cluster, InjectorSettings
from injector.events import EventSink
from injector.metrics import WebhookMetrics
from injector.namespaces import LOOKUP_TIMEOUT, NAMESPACES, Namespaces
from injector.node_versions import PublishedNodes
from injector.plain import Page, PageServer, health_pages
from injector.policy_admission import PolicyAdmission
from injector.serving import Serving
from mesh.errors import MeshError
from mesh.kube import access
from mesh.kube.api import KubeError
from mesh.kube.client import KubeClient
from mesh.kube.discovery import Capabilities, discover
from mesh.obs.health import Health
from mesh.obs.logs import logger
from mesh.obs.metrics import exposition

USER_AGENT: Final = "gatehouse-injector"
_CHECKS: Final = ("certificate", "config", "listener", "namespaces", "cluster")
_REDISCOVER_SECONDS: Final = 300.0
_MISMATCH_SECONDS: Final = 60.0
_SELF_CALL_SECONDS: Final = 10.0

_log = logger(__name__)


class LiveSettings:
    """Settings of injection that follow their file; the last good ones stay in force.

    Args:
        file: None: they never change.
    """

    def __init__(self, config: InjectorConfig, file: Path | None, metrics: WebhookMetrics) -> None:
        self._config = config
        self._settings = config.settings()
        self._file = file
        self._metrics = metrics
        self._text = self._read()
        self.problem = ""
        metrics.config_good.set(1)
        metrics.config_generation.set(0)

    @property
    def current(self) -> InjectorSettings:
        """Those in force."""
        return self._settings

    def refresh(self) -> bool:
        """Look at the file; True when other settings are in force from now on."""
        text = self._read()
        if self._file is None or text == self._text:
            return False
        self._text = text
        try:
            found = configuration.load(self._file, os.environ)
            settings = found.settings()
        except MeshError as error:
            self.problem = error.public
            self._metrics.config_good.set(0)
            self._metrics.config_reloads.labels(result="refused").inc()
            _log.error("the configuration is refused, the last good one stays in force", error=error)
            return False
        self.problem = ""
        self._metrics.config_good.set(1)
        self._metrics.config_reloads.labels(result="taken").inc()
        if found.injection == self._config.injection:
            _log.warning("only the part `injection` is taken over without a restart")
            return False
        self._config, self._settings = found, settings
        self._metrics.config_generation.inc()
        _log.info("configuration taken over", digest=settings.digest)
        return True

    def _read(self) -> bytes:
        if self._file is None:
            return b""
        try:
            with self._file.open("rb") as file:
                return file.read(2 << 20)
        except OSError:
            # Being replaced: looked at again in a moment; what is in force does not depend on it.
            return getattr(self, "_text", b"")


class _WatchEvents:
    def __init__(self, metrics: WebhookMetrics) -> None:
        self._metrics = metrics

    def relisted(self, resource: str, items: int) -> None:
        if resource == NAMESPACES.name:
            self._metrics.namespaces.set(items)

    def event(self, resource: str) -> None:
        """Single events say nothing of interest."""

    def failed(self, resource: str, code: str) -> None:
        self._metrics.watch_failures.labels(resource=resource, code=code).inc()


class Runtime:
    """Parts and their order of start and stop.

    Args:
        file: of the configuration, for reloads.

    Raises:
        MeshError: the credentials for the API server cannot be used.
        OSError: a port for health and metrics cannot be bound.
    """

    def __init__(self, config: InjectorConfig, file: Path | None) -> None:
        self.config = config
        self.health = Health(*_CHECKS)
        self.registry = CollectorRegistry()
        self.metrics = WebhookMetrics(self.registry)
        self.settings = LiveSettings(config, file, self.metrics)
        limits = config.limits
        self.serving = Serving(
            config.serving_dir,
            tls12=config.listen.tls12,
            handshake_seconds=limits.header_wait.total_seconds(),
            loaded=lambda good: self.metrics.certificate_loads.labels(
                result="taken" if good else "refused"
            ).inc(),
        )
        found = access.find(config.kubeconfig)
        self._api = KubeClient(found, user_agent=USER_AGENT)
        lookup = KubeClient(found, user_agent=USER_AGENT, timeout=LOOKUP_TIMEOUT)
        watched = _WatchEvents(self.metrics)
        self.namespaces = Namespaces(self._api, lookup, events=watched)
        self.nodes = PublishedNodes(
            KubeClient(found, user_agent=USER_AGENT),
            namespace=config.namespace,
            name=config.upkeep.nodes.config_map,
            events=watched,
        )
        self.events = EventSink(
            KubeClient(found, user_agent=USER_AGENT) if config.events else None,
            count=lambda result: self.metrics.events.labels(result=result).inc(),
        )
        self._capabilities: Capabilities | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._port = 0
        self._due: dict[str, float] = {}
        self._servers = self._page_servers()
        self.admission = Admission(
            settings=lambda: self.settings.current,
            cluster=self._cluster,
            namespaces=self.namespaces,
            events=self.events,
            metrics=self.metrics,
        )
        policies = PolicyAdmission(self.metrics)
        for reviewer in (self.admission, policies):
            reviewer.begin()
        self.app = create_app(
            self.admission,
            policies,
            self.health,
            margin=limits.margin.total_seconds(),
        )

    def start(self, port: int) -> None:
        """Start the threads of this worker.

        Args:
            port: of the TLS listener, for the call to itself.
        """
        self._port = port
        self.serving.refresh()
        self.namespaces.start()
        self.nodes.start()
        self.events.start()
        for server in self._servers:
            server.start()
        thread = threading.Thread(target=self._keep_house, name="housekeeping", daemon=True)
        thread.start()
        self._threads.append(thread)

    def drain(self) -> None:
        """Say that no more requests are wanted; they are still served."""
        self.health.set("draining", ok=False, detail="the process is being stopped")
        self.metrics.ready.set(0)

    def stop(self) -> None:
        """Stop everything."""
        self._stop.set()
        self.namespaces.stop()
        self.nodes.stop()
        self.events.stop()
        for server in self._servers:
            server.stop()

    def reload(self) -> None:
        """Look at the files now."""
        self.settings.refresh()
        self.serving.refresh()

    def _cluster(self) -> Cluster:
        if self._capabilities is None:
            self._capabilities = discover(self._api)
        return NodesAndServer(self._capabilities, self.nodes.current)

    def _page_servers(self) -> list[PageServer]:
        listen, shared = self.config.listen, self.config.workers > 1
        found = []
        if listen.plain is not None:
            pages = self._pages() if listen.metrics is None else health_pages(self.health)
            found.append(PageServer(pages, listen.plain.host, listen.plain.port, share_port=shared))
        if listen.metrics is not None:
            at, context = listen.metrics, self.serving.context
            found.append(PageServer(self._pages(), at.host, at.port, share_port=shared, context=context))
        return found

    def _pages(self) -> dict[str, Page]:
        def metrics() -> tuple[int, str, bytes]:
            registry = self.registry
            if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
                registry = CollectorRegistry()
                MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # has no types
            body, kind = exposition(registry)
            return 200, kind, body

        return {**health_pages(self.health), "/metrics": metrics}

    def _keep_house(self) -> None:
        wait = self.config.reload_interval.total_seconds()
        while not self._stop.is_set():
            try:
                self._look()
            except Exception:  # noqa: BLE001 - the keeper of readiness must not die of one bad look
                _log.exception("housekeeping failed")
            ready = self.health.ready().ok
            self.metrics.ready.set(ready)
            self._stop.wait(wait if ready else min(wait, 0.2))

    def _look(self) -> None:
        self.settings.refresh()
        self.serving.refresh()
        # A refused file does not make this process unready: it works with the last good settings,
        # and all replicas would fall out at once.
        self.health.set("config", ok=True, detail=self.settings.problem)
        self.health.set(
            "namespaces", ok=self.namespaces.synced, detail="" if self.namespaces.synced else "not listed yet"
        )
        self.health.set(
            "watch",
            ok=self.namespaces.alive,
            detail="" if self.namespaces.alive else "the thread has died",
            liveness=True,
        )
        self._check_certificate()
        if self._is_due("cluster", _REDISCOVER_SECONDS):
            self._check_cluster()
        if self._is_due("listener", _SELF_CALL_SECONDS):
            self._check_listener()
        if self._is_due("bundle", _MISMATCH_SECONDS):
            self._check_bundle()

    def _is_due(self, name: str, every: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + every
        return True

    def _again(self, name: str) -> None:
        """Try a failed check at the next look."""
        self._due[name] = 0.0

    def _check_certificate(self) -> None:
        pair = self.serving.pair
        self.metrics.certificate_expiry.set(pair.not_after.timestamp() if pair else 0)
        if pair is None:
            self.health.set("certificate", ok=False, detail=self.serving.problem)
            return
        good = pair.not_after > dt.datetime.now(dt.UTC)
        self.health.set("certificate", ok=good, detail=f"valid until {pair.not_after.isoformat()}")

    def _check_cluster(self) -> None:
        try:
            self._capabilities = discover(self._api)
        except KubeError as error:
            self._again("cluster")
            if self._capabilities is None:
                self.health.set("cluster", ok=False, detail=error.public)
            return
        self.health.set("cluster", ok=True, detail=f"Kubernetes 1.{self._capabilities.minor}")

    def _check_listener(self) -> None:
        problem = self._self_call()
        self.health.set("listener", ok=not problem, detail=problem)
        if problem:
            self._again("listener")

    def _self_call(self) -> str:
        """Call `/livez` through our own listener; empty when it answers with our certificate."""
        pair = self.serving.pair
        if pair is None:
            return "there is no certificate to call with"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The peer is this very process: it is known by its certificate, byte for byte.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host = self.config.listen.https.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - the name of all
        try:
            with (
                socket.create_connection((host, self._port), timeout=2) as plain,
                context.wrap_socket(plain) as tls,
            ):
                if tls.getpeercert(binary_form=True) not in {pair.leaf.der, self._leaf()}:
                    return "the listener shows another certificate"
                connection = http.client.HTTPConnection("localhost")
                connection.sock = tls
                connection.request("GET", "/livez", headers={"Connection": "close"})
                with contextlib.closing(connection.getresponse()) as response:
                    status = response.status
        except (OSError, http.client.HTTPException) as error:
            return f"the listener does not answer: {error}"
        return "" if status == http.HTTPStatus.OK else f"/livez answered {status}"

    def _leaf(self) -> bytes:
        pair = self.serving.pair
        return pair.leaf.der if pair is not None else b""

    def _check_bundle(self) -> None:
        pair, config = self.serving.pair, self.config
        if pair is None:
            self._again("bundle")
            return
        try:
            entries = ca_bundle.list_entries(
                self._api, config.upkeep.webhook_selector, config.namespace, config.service
            )
        except KubeError as error:
            _log.warning("webhook configurations cannot be read", error=error)
            return
        now, name = dt.datetime.now(dt.UTC), config.dns_names[0]
        bad = [e.name for e in entries if not ca_bundle.verifies(pair.chain_pem, e.bundle_pem, name, now)]
        self.metrics.bundle_mismatch.set(len(bad))
        if bad:
            _log.warning("the API server will not trust this webhook: caBundle does not fit", entries=bad)
