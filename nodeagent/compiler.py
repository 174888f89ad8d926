"""Turns a world into the configuration of each workload's proxy, and makes anew only what changed.

Three layers of reuse: equal services, policies and key sets keep their objects, so that rendering
recognises its parts; a workload whose input is equal keeps its resources; equal resources have equal
bytes and versions, so that a proxy is not told what it knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from mesh.envoy.cache import RenderCache
from mesh.envoy.render import OutboundService, ProxyInput, render
from mesh.envoy.resources import ResourceSet
from mesh.errors import Code, MeshError
from mesh.meshconfig import MeshConfig
from mesh.obs.logs import logger
from mesh.policy.effective import EffectivePolicy, Finding, MtlsMode, ObjectRef, Severity
from mesh.policy.jwks import encode_public_key
from mesh.policy.model import Policy
from mesh.policy.policyset import PolicySet
from mesh.policy.resolve import resolve, resolve_transport
from mesh.topology import Service, Workload
from nodeagent.core.directory import World
from nodeagent.core.documents import DocumentKey
from nodeagent.core.services import (
    EVERYTHING,
    Scope,
    build_services,
    check_references,
    check_scope,
    scope,
)
from nodeagent.metrics import AgentMetrics

RENDER_CACHE: Final = 20_000
"""Rendered parts that are kept; most are shared between the workloads of a node."""

_log = logger("nodeagent.compiler")
_T = TypeVar("_T")


class CompileCode(Code):
    """Why a workload's configuration could not be made; it keeps what it had."""

    RENDER = "compile_render"
    FAILED = "compile_failed"


@dataclass(frozen=True, slots=True)
class Compilation:
    """The result for a whole world.

    Attributes:
        configs: resources by uid of the workload; complete.
        findings: of policies, references and rendering.
        rendered: uids whose resources were made anew.
    """

    configs: Mapping[str, ResourceSet]
    findings: tuple[Finding, ...]
    rendered: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Basis:
    """What every workload's policy depends on, besides the workload."""

    policies: tuple[Policy, ...] = ()
    mesh: MeshConfig | None = None
    key_sets: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What was made for a workload.

    Attributes:
        stale: a later attempt failed, so `proxy` is not what applies now.
    """

    proxy: ProxyInput
    config: ResourceSet
    stale: bool = False


class Compiler:
    """Compiles one world after another.

    Args:
        metrics: counts what was made anew.
        fallback_jwks: key set for issuers whose keys are not known; default is a throw-away one.
        captured: which services a captured workload gets.
    """

    def __init__(
        self, metrics: AgentMetrics, *, fallback_jwks: str | None = None, captured: Scope = EVERYTHING
    ) -> None:
        self._metrics = metrics
        self._captured = captured
        self._fallback = fallback_jwks if fallback_jwks is not None else throw_away_key_set()
        self._cache = RenderCache(RENDER_CACHE)
        self._basis = _Basis()
        self._policies = PolicySet()
        self._services: dict[str, OutboundService] = {}
        self._done: dict[str, _Compiled] = {}

    def compile(self, world: World, key_sets: Mapping[str, str]) -> Compilation:
        """Compile a world; a workload that cannot be compiled keeps what it had.

        Args:
            world: everything in force.
            key_sets: canonical JSON by `JwtRule.keys_address`.
        """
        basis = _Basis(world.policies, world.mesh, dict(key_sets))
        same_basis = basis == self._basis
        if basis.policies != self._basis.policies:
            self._policies = PolicySet(world.policies)
        self._basis = basis
        services = build_services(world)
        self._services = {service.host: self._outbound(service, world.mesh) for service in services}
        findings = [
            *self._policies.findings,
            *check_references(world, services),
            *check_scope(world, services, self._captured),
        ]
        done: dict[str, _Compiled] = {}
        rendered: set[str] = set()
        for spec in world.workloads:
            uid, before = spec.workload.uid, self._done.get(spec.workload.uid)
            if not spec.workload.address:  # where it is, is not known yet, or not any more
                done |= {uid: before} if before is not None else {}
                continue
            try:
                proxy = self._input(spec.workload, before, world.mesh, key_sets, same_basis=same_basis)
                if before is not None and proxy == before.proxy:
                    done[uid] = replace(before, stale=False)
                else:
                    done[uid] = _Compiled(proxy, render(proxy, self._cache))
                    rendered.add(uid)
                findings += proxy.policy.findings
            except Exception as error:  # noqa: BLE001 - one workload must not hold up the others
                findings.append(_failure(spec.workload, error, world))
                if before is not None:
                    done[uid] = replace(before, stale=True)
        self._done = done
        self._metrics.compiled.labels(changed="yes").inc(len(rendered))
        self._metrics.compiled.labels(changed="no").inc(len(world.workloads) - len(rendered))
        return Compilation(
            {uid: item.config for uid, item in done.items()},
            tuple(dict.fromkeys(findings)),  # a policy says the same of each workload that it selects
            frozenset(rendered),
        )

    def _input(
        self,
        workload: Workload,
        old: _Compiled | None,
        mesh: MeshConfig,
        key_sets: Mapping[str, str],
        *,
        same_basis: bool,
    ) -> ProxyInput:
        """What the proxy is rendered from, with as many old objects as are equal."""
        services = tuple(
            self._services[service.host]
            for service in scope(
                workload, (outbound.service for outbound in self._services.values()), self._captured
            )
        )
        if same_basis and old is not None and not old.stale and old.proxy.workload == workload:
            policy = old.proxy.policy
        else:
            policy = self._resolve(workload, mesh, key_sets)
            if old is not None:
                policy = replace(policy, authz=_kept(old.proxy.policy.authz, policy.authz))
        return ProxyInput(workload=workload, policy=policy, services=services, mesh=mesh)

    def _resolve(self, workload: Workload, mesh: MeshConfig, key_sets: Mapping[str, str]) -> EffectivePolicy:
        return resolve(self._policies, workload, mesh, key_sets=key_sets, fallback_jwks=self._fallback)

    def _outbound(self, service: Service, mesh: MeshConfig) -> OutboundService:
        """A service with the endpoints that are spoken to with mutual TLS."""
        mtls = frozenset(
            endpoint.address
            for port in service.ports
            for endpoint in port.endpoints
            if endpoint.in_mesh
            and not service.external
            and resolve_transport(self._policies, endpoint.namespace, endpoint.labels, mesh).for_port(
                endpoint.address.port
            )
            is not MtlsMode.DISABLE
        )
        return _kept(self._services.get(service.host), OutboundService(service, mtls))


def throw_away_key_set() -> str:
    """A key set whose private half nobody has: every token fails closed (D14)."""
    return encode_public_key(ec.generate_private_key(ec.SECP256R1()).public_key(), kid="unavailable")


def _kept(old: _T | None, new: _T) -> _T:
    """The old object when it is equal: what was rendered from it is found by identity."""
    return old if old is not None and old == new else new


def _failure(workload: Workload, error: Exception, world: World) -> Finding:
    key = DocumentKey("Workload", workload.namespace, workload.name)
    place = world.places.get(key, "")
    if isinstance(error, MeshError):
        code, message = CompileCode.RENDER, error.public
    else:
        # Not foreseen: the traceback is the only way to find the fault.
        _log.exception("a workload's configuration could not be made", workload=workload.name)
        code, message = CompileCode.FAILED, f"a fault of the agent ({type(error).__name__}), see its log"
    ref = ObjectRef(key.kind, key.namespace, key.name, source=place)
    text = f"configuration not made: {message}; the proxy keeps what it has"
    return Finding(code, Severity.ERROR, ref, "", text, place)
