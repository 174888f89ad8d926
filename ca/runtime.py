"""The parts of one worker process, put together: keys, authenticators, service, servers, upkeep."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from flask import Flask
from prometheus_client import CollectorRegistry

from ca.audit import Audit
from ca.authn import Authenticator, Chain
from ca.authn.claims import TokenPolicy
from ca.authn.cluster_keys import ClusterKeys
from ca.authn.jwt import TokenAuthenticator
from ca.authn.keys import JwksError, JwksFile, KeySet
from ca.authn.mtls import CertificateAuthenticator
from ca.bundle_document import PublishedBundle
from ca.cluster import Cluster
from ca.config import CaConfig, ConfigCode, ConfigError
from ca.core.authority import Authority
from ca.core.bundle import BundleError
from ca.grpc_calls import Calls
from ca.grpc_server import CertificateHandler, GrpcServer, ServerOptions, TransportCode, TransportError
from ca.grpc_watch import Watch
from ca.http_server import PlainServer, create_app
from ca.keystore import KeyStore, KeyStoreConfig, KeyStoreError
from ca.keystore_files import ensure_dir
from ca.keystore_secret import SecretKeyStore
from ca.limits import Limiter, Limits
from ca.metrics import CaMetrics
from ca.pool import RequestPool
from ca.requests import KeyMemory
from ca.rotator import Rotator, rotation_of
from ca.service import IssuanceService
from ca.serving import Serving
from ca.trust_handler import TrustHandler
from ca.trust_service import TrustService
from mesh.clock import Clock, SystemClock
from mesh.errors import Category, MeshError
from mesh.obs import logs
from mesh.obs.health import Health
from mesh.obs.metrics import show_process
from mesh.spiffe import SpiffeId
from mesh.x509 import pem
from mesh.x509.certs import read_certificate

CHECKS: Final = ("bundle", "grpc", "keys", "serving_certificate", "token_keys")
CLUSTER_CHECKS: Final = ("agents", "pods", "published_roots", "rotation")

_log = logs.logger(__name__)


def keystore_config(config: CaConfig) -> KeyStoreConfig:
    """What the key store needs of the configuration.

    Raises:
        KeyStoreError: lifetimes that do not fit each other.
    """
    return KeyStoreConfig(
        trust_domain=config.trust_domain,
        state_dir=config.state_dir,
        plugged_dir=config.ca_dir,
        root_lifetime=config.root_lifetime,
        issuing_lifetime=config.intermediate_lifetime,
        leaf_lifetime=config.issue.max_lifetime,
        multi_root=config.multi_root,
    )


def token_policy(config: CaConfig, issuer: str) -> TokenPolicy:
    """What tokens must say."""
    return TokenPolicy(
        trust_domain=config.trust_domain,
        issuer=issuer,
        audiences=frozenset(config.token.audiences),
        leeway=config.token.leeway,
        max_lifetime=config.token.max_lifetime,
        require_pod=config.token.require_pod,
    )


def published(roots: Sequence[bytes]) -> list[str]:
    """The roots as they are published, one PEM text each: oldest first, whichever of them signs.

    So a change of the signing root alone is no write in every namespace.
    """
    found = sorted(map(read_certificate, roots), key=lambda root: (root.not_before, root.der))
    return [pem.encode_certificate(root.der) for root in found]


class Runtime:
    """Everything that a worker runs; made after the fork, because gRPC must not cross one.

    Raises:
        KeyStoreError, IssueError and other MeshErrors: the authority cannot work.
    """

    def __init__(self, config: CaConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        now = self.clock.now()
        self.registry = CollectorRegistry()
        self.metrics = CaMetrics(self.registry)
        show_process(self.registry)
        self.cluster = Cluster(config, self.metrics, self.clock) if config.cluster.kubernetes else None
        self.health = Health(*CHECKS, *(CLUSTER_CHECKS if self.cluster is not None else ()))
        self.profile = config.issue.profile()
        self.keystore = self._keystore(now)
        self._lock = threading.Lock()
        self._authority = Authority(self.keystore.issuer(now), self.profile)
        self.jwks = self._token_source()
        self._token_keys: KeySet | None = None  # those that were reported
        self.serving = Serving(config.serving.names, config.serving.lifetime)
        self.bundle = PublishedBundle(config.trust_domain, config.state_dir)
        self.limiter = Limiter(_limits(config))
        self.audit = Audit()
        self.service = IssuanceService(
            authenticator=Chain(self._authenticators()),
            limiter=self.limiter,
            authority=self.authority,
            own_keys=lambda: frozenset({self.serving.current.spki}),
            keys=KeyMemory(config.issue.remembered_keys, allow_reuse=config.issue.allow_key_reuse),
            clusters=frozenset(config.token.clusters),
            audit=self.audit,
            metrics=self.metrics,
            issued=self.keystore.record_issued,
            grants=_grants(config),
        )
        self.rotator = self._rotator()
        self.trust = self._trust_service()
        if self.cluster is not None and config.cluster.publish_roots:
            self.cluster.publish(lambda: published(self.keystore.roots))
        self.serving.renew(self._authority.issuer, now)
        self.tick(now, force=True)
        self.grpc = self._grpc_server()
        self.plain = self._plain_server()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._reload = False
        self._upkeep = threading.Thread(target=self._run, name="upkeep", daemon=True)

    # --- life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve."""
        if self.cluster is not None:
            self.cluster.start()
        self.grpc.start()
        if self.plain is not None:
            self.plain.start()
        self._upkeep.start()
        self.health.set("grpc", ok=True)
        _log.info(
            "authority is serving",
            trust_domain=self.config.trust_domain,
            grpc_port=self.grpc.port,
            mtls_port=self.grpc.mtls_port,
            plain_port=self.plain.port if self.plain is not None else 0,
            roots=[x509.load_der_x509_certificate(r).subject.rfc4514_string() for r in self.keystore.roots],
        )

    def reload(self) -> None:
        """Read all files again soon; safe to call from a signal handler."""
        self._reload = True
        self._wake.set()

    def drain(self) -> None:
        """Refuse new requests; those in flight go on. Returns at once."""
        self.health.set("grpc", ok=False, detail="shutting down")
        self.grpc.drain()

    def stop(self) -> None:
        """Drain, then end all threads."""
        self.drain()
        self._stopping.set()
        self._wake.set()
        self.grpc.stop()
        if self._upkeep.is_alive():
            self._upkeep.join()
        if self.plain is not None:
            self.plain.stop()
        if self.cluster is not None:
            self.cluster.stop()
        _log.info("authority has stopped")

    def app(self) -> Flask:
        """The application for HTTPS."""
        return create_app(
            health=self.health,
            registry=self.registry,
            refresh=self.refresh_gauges,
            bundle=lambda: self.bundle.document,
        )

    # --- upkeep -------------------------------------------------------------------------------------

    def authority(self) -> Authority:
        """The authority in force; a new one when the key store has another issuer."""
        issuer = self.keystore.issuer(self.clock.now())
        held = self._authority
        if held.issuer is issuer:
            return held
        with self._lock:
            if self._authority.issuer is not issuer:
                self._authority = Authority(issuer, self.profile)
                _log.info("signing certificate changed", serial=issuer.certificate.serial)
            return self._authority

    def tick(self, now: dt.datetime, *, force: bool = False) -> None:
        """Look at everything that changes by time or by files; never raises for what it finds.

        Args:
            force: read the files of the CA again even though nothing says that they have changed.
        """
        self._tick_keys(now, force=force)
        self._tick_agents(now)
        self._tick_rotation(now)
        self._tick_token_keys(now)
        self._tick_serving(now)
        self._tick_bundle(now)
        if self.cluster is not None:
            self._check("pods", *self.cluster.pods_state())
            behind = self.cluster.publish_problem()
            self._check("published_roots", "", RuntimeError(behind) if behind else None)

    def _tick_keys(self, now: dt.datetime, *, force: bool) -> None:
        if force or self.config.ca_dir is not None or self.cluster is not None:
            result = self.keystore.reload(now)
            if result.error is not None or result.changed:
                self.metrics.reloads.labels(
                    part="keys", result="failed" if result.error is not None else "changed"
                ).inc()
        error: MeshError | None = self.keystore.last_error
        try:
            issuer = self.authority().issuer
        except MeshError as e:
            error = e
            issuer = self._authority.issuer
        left = issuer.not_after - now
        if left < self.profile.min_lifetime:
            self._check("keys", f"the signing certificate ends {issuer.not_after.isoformat()}", error)
        elif error is not None:
            # What was good is still in use: ready, but somebody should look.
            self._check("keys", "", error)
        else:
            self._check("keys", "", None)

    def _tick_agents(self, now: dt.datetime) -> None:
        """Before the rotation: it asks what agents have said."""
        if self.cluster is not None:
            if self.config.cluster.agents:
                self.cluster.agent_sharing.step(now)
            self._check("agents", "", self.cluster.agent_sharing.problem)

    def _tick_rotation(self, now: dt.datetime) -> None:
        if self.rotator is None:
            return
        if self.rotator.tick(now):
            self.metrics.reloads.labels(part="keys", result="changed").inc()
            try:
                self.authority()
            except MeshError as e:
                self._check("keys", "", e)
        self._check("rotation", "", self.rotator.problem)

    def _tick_token_keys(self, now: dt.datetime) -> None:
        file = self.jwks
        try:
            file.reload(now)
        except JwksError:
            self.metrics.reloads.labels(part="token_keys", result="failed").inc()
        # A token with an unknown key may have had the file read since the last tick.
        error, current = file.last_error, file.current
        self._check("token_keys", error.public if error is not None and current is None else "", error)
        if current is not None and current is not self._token_keys:
            self._token_keys = current
            self.metrics.reloads.labels(part="token_keys", result="changed").inc()
            _log.info(
                "token keys loaded",
                key_ids=[key_id for _, key_id in current.keys],
                ignored=list(current.ignored),
            )

    def _tick_serving(self, now: dt.datetime) -> None:
        try:
            if self.serving.renew(self._authority.issuer, now):
                _log.info("serving certificate renewed", not_after=self.serving.current.not_after)
        except MeshError as e:
            gone = now >= self.serving.current.not_after
            self._check("serving_certificate", e.public if gone else "", e)
        else:
            self._check("serving_certificate", "", None)

    def _tick_bundle(self, now: dt.datetime) -> None:
        try:
            if self.bundle.update(self.keystore.roots, now) and self.cluster is not None:
                self.cluster.bundle_changed()
        except (BundleError, KeyStoreError, OSError) as e:
            self._check(
                "bundle", "the bundle document cannot be made" if self.bundle.document is None else "", e
            )
        else:
            self._check("bundle", "", None)

    def _check(self, name: str, problem: str, error: Exception | None) -> None:
        """Set a check; log when its state changes."""
        before = {check.name: check for check in self.health.ready().checks}[name]
        warning = str(error) if error is not None else ""
        self.health.set(name, ok=not problem, detail=problem or warning)
        if (before.ok, before.detail) == (not problem, problem or warning):
            return
        if problem:
            _log.error("not ready", part=name, problem=problem, error=error)
        elif error is not None:
            _log.error("what was loaded before stays in force", part=name, error=error)

    def refresh_gauges(self) -> None:
        """Bring gauges up to date before they are shown."""
        now, metrics = self.clock.now(), self.metrics
        issuer = self._authority.issuer
        root_ends = min(x509.load_der_x509_certificate(r).not_valid_after_utc for r in issuer.roots)
        if issuer.epoch:  # the end of a former root, or of one that is not used yet, is nobody's trouble
            root_ends = self.keystore.root.not_after
        metrics.root_expiry.set(root_ends.timestamp())
        metrics.root_left.set((root_ends - now).total_seconds())
        metrics.chain_expiry.set(issuer.not_after.timestamp())
        metrics.chain_left.set((issuer.not_after - now).total_seconds())
        metrics.chain_life.set((issuer.not_after - issuer.certificate.not_before).total_seconds())
        serving = self.serving.current
        metrics.serving_left.set((serving.not_after - now).total_seconds())
        metrics.serving_life.set((serving.not_after - serving.not_before).total_seconds())
        metrics.bundle_roots.set(len(issuer.roots))
        current = self.jwks.current
        metrics.token_keys.set(len(current.keys) if current is not None else 0)
        metrics.in_flight.set(self.limiter.in_flight)
        metrics.callers.set(self.limiter.callers)
        metrics.ready.set(int(self.health.ready().ok))
        if self.cluster is not None:
            self.cluster.refresh_gauges()
        if self.rotator is not None:
            self.rotator.refresh_gauges(now)

    def _run(self) -> None:
        interval = self.config.reload_interval.total_seconds()
        while not self._stopping.is_set():
            self._wake.wait(interval)
            self._wake.clear()
            if self._stopping.is_set():
                return
            force, self._reload = self._reload, False
            try:
                self.tick(self.clock.now(), force=force)
            except Exception:  # noqa: BLE001 - upkeep must go on; the log says what happened
                _log.exception("upkeep failed")

    # --- parts --------------------------------------------------------------------------------------

    def _keystore(self, now: dt.datetime) -> KeyStore | SecretKeyStore:
        """Keys from files when a CA is plugged in, or there is no cluster; else from the Secret."""
        config = keystore_config(self.config)
        if self.cluster is None or config.plugged_dir is not None:
            return KeyStore.open(config, now)
        ensure_dir(config.state_dir)  # the number of the bundle document is kept there
        return self.cluster.keystore(config, now)

    def _rotator(self) -> Rotator | None:
        if self.cluster is None:
            return None
        return self.cluster.rotator(self.keystore, self.cluster.agents.counts, self.audit)

    def _token_source(self) -> JwksFile | ClusterKeys:
        file = self.config.token.jwks_file
        if file is not None:
            return JwksFile(file)
        if self.cluster is None:
            raise ConfigError(ConfigCode.CONFLICT, "token.jwks_file must be given without a cluster")
        return self.cluster.token_keys()

    def _authenticators(self) -> list[Authenticator]:
        parts: list[Authenticator] = []
        if self.cluster is not None:
            policy = token_policy(self.config, self.cluster.issuer())
            parts.append(self.cluster.authenticator(policy, self.jwks))
        else:
            parts.append(TokenAuthenticator(token_policy(self.config, self.config.token.issuer), self.jwks))
        if self.config.listen.mtls is not None:
            parts.append(CertificateAuthenticator(self.config.trust_domain, lambda: self.keystore.roots))
        return parts

    def _trust_service(self) -> TrustService:
        agents = self.config.cluster.agents
        namespace, _, name = agents.partition("/")
        domain = self.config.trust_domain
        return TrustService(
            agents=SpiffeId.for_service_account(domain, namespace, name) if agents else None,
            authenticate=self.service.authenticate,
            refuse=self.service.refuse,
            issuer=lambda: self.authority().issuer,
            book=self.cluster.agents if self.cluster is not None else None,
            answered=self.metrics.syncs.inc,
            renew_within=self._renew_within,
            in_flight=max(1, self.config.limits.threads // 8),
            callers=self.config.limits.callers,
        )

    def _renew_within(self) -> int:
        """Seconds over which agents are to renew certificates of former roots; 0 = when they are due."""
        return int(rotation_of(self.keystore).renew_within(self.clock.now()).total_seconds())

    def _grpc_server(self) -> GrpcServer:
        config = self.config
        pool = RequestPool(config.limits.threads, name="grpc", faults=_log.exception)
        watch = Watch(config.limits.receive_wait, pool.relieve)
        calls = Calls(
            self.clock,
            watch=watch,
            waited=pool.waited,
            queue_wait=config.limits.queue_wait,
            observe_queue=self.metrics.queue.observe,
            certificates=config.listen.mtls is not None,
            refuse=self.service.refuse,
        )
        handlers = (CertificateHandler(self.service, calls), TrustHandler(self.trust, calls))
        options = ServerOptions(
            tokens=str(config.listen.grpc),
            mtls=str(config.listen.mtls) if config.listen.mtls is not None else None,
            share_ports=config.workers > 1,
            threads=config.limits.threads,
            queue=config.limits.queue,
            streams_per_connection=config.limits.streams_per_connection,
            connection_age=config.limits.connection_age,
            drain=config.drain,
        )
        return GrpcServer(handlers, watch, pool, self.serving, options)

    def _plain_server(self) -> PlainServer | None:
        address = self.config.listen.plain
        if address is None:
            return None
        app = create_app(health=self.health, registry=self.registry, refresh=self.refresh_gauges, bundle=None)
        try:
            return PlainServer(app, address.host, address.port, share_port=self.config.workers > 1)
        except OSError as e:
            raise TransportError(
                TransportCode.LISTEN,
                f"cannot listen on listen.plain {address}: {e.strerror}",
                category=Category.FAILED_PRECONDITION,
            ) from e


def _grants(config: CaConfig) -> dict[SpiffeId, tuple[str, ...]]:
    """DNS names by the identity that may have them."""
    found = {}
    for grant in config.serving_grants:
        namespace, _, name = grant.service_account.partition("/")
        found[SpiffeId.for_service_account(config.trust_domain, namespace, name)] = grant.dns
    return found


def _limits(config: CaConfig) -> Limits:
    limits = config.limits
    return Limits(
        caller_rate=limits.caller_rate,
        caller_burst=limits.caller_burst,
        caller_in_flight=limits.caller_in_flight,
        # Some threads stay free to tell the rest to come back later.
        total_in_flight=max(1, limits.threads * 3 // 4),
        callers=limits.callers,
    )
