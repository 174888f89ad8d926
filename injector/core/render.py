"""The pod as it should be: the author's, with a sidecar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from injector.core import metadata, overrides, podjson
from injector.core.bootstrap import MAX_BYTES, Shape
from injector.core.capture import probe_port
from injector.core.containers import (
    Plan,
    capture_config,
    init_container,
    proxy_container,
    validation_container,
    volume,
)
from injector.core.decision import PROXY
from injector.core.keys import OVERRIDES, STATUS
from injector.core.merge import settle
from injector.core.options import InterceptionMode, PodOptions
from injector.core.podjson import Json
from injector.core.probes import Rewriting
from injector.core.restore import Original
from injector.core.settings import InjectorSettings
from injector.core.status import Status
from mesh.envoy.probes import MetricsTarget

DEFAULT_GRACE_SECONDS = 30
_KILL_MARGIN_SECONDS = 5
_LONGEST_DELAY_SECONDS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The wanted pod, before its status is written.

    Attributes:
        pod: without the status annotation.
        status: what to write there.
        sidecar: our containers, in order.
        volumes: our volumes.
        problems: sentences that refuse the pod.
        remarks: what the author should know.
    """

    pod: Json
    status: Status
    sidecar: tuple[Json, ...]
    volumes: tuple[Json, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    def finished(self, reason: str) -> Json:
        """The pod with its status."""
        annotations = podjson.annotations_of(self.pod)
        text = replace(self.status, reason=reason).to_json()
        return podjson.with_metadata(self.pod, annotations={**annotations, STATUS: text})


def render(
    raw: Mapping[str, Any],
    original: Original,
    options: PodOptions,
    settings: InjectorSettings,
    *,
    native: bool,
    workload: str,
    proxy_uid: int,
) -> Rendered:
    """Compose the pod.

    Args:
        raw: the pod as it came in; positions in its lists are kept where they do not matter.
        original: the same without our additions.
        native: run the proxy as a native sidecar.
        workload: name of the workload, may be empty.
        proxy_uid: user and group of the proxy.
    """
    base = original.pod
    captured = options.interception is InterceptionMode.REDIRECT
    rewriting = Rewriting(settings.liveness_grace_seconds)
    lists = {name: podjson.listed(base, name) for name in ("initContainers", "containers")}
    if options.rewrite_probes and captured and options.include_inbound != ():
        lists = {name: [rewriting.container(c) for c in items] for name, items in lists.items()}
    metrics = metadata.metrics(base, options)
    plan = _plan(
        base, options, settings, rewriting, metrics, native=native, workload=workload, proxy_uid=proxy_uid
    )
    proxy = proxy_container(plan)
    if original.declared is not None:
        proxy = overrides.overlay(proxy, original.declared)
    capture = validation_container(plan) if settings.node_capture else init_container(plan)
    init = [settle(original.existing.get(capture["name"]), capture)] if captured else []
    proxy = settle(original.existing.get(PROXY), proxy)
    spec = dict(podjson.spec(base))
    if native:
        _put(spec, raw, "initContainers", [*init, proxy, *lists["initContainers"]])
        _put(spec, raw, "containers", lists["containers"])
    else:
        _put(spec, raw, "initContainers", [*lists["initContainers"], *init])
        _put(spec, raw, "containers", _with_proxy(raw, lists["containers"], proxy, first=plan.hold))
    ours = _volumes(base, options)
    _put(spec, raw, "volumes", _in_place(raw, "volumes", podjson.listed(base, "volumes"), ours))
    secrets = _pull_secrets(base, settings)
    kept = podjson.listed(base, "imagePullSecrets")
    _put(spec, raw, "imagePullSecrets", _in_place(raw, "imagePullSecrets", kept, secrets))
    status = Status(
        version=settings.version,
        revision=settings.selection.revision,
        digest=settings.digest,
        mode="native" if native else "classic",
        init_containers=tuple(c["name"] for c in [*init, *([proxy] if native else [])]),
        containers=() if native else (PROXY,),
        volumes=tuple(v["name"] for v in ours),
        image_pull_secrets=tuple(s["name"] for s in secrets),
        probes=rewriting.records,
        declared=original.position,
    )
    labels = metadata.added_labels(base, options, workload)
    pod, status = _with_metadata({**base, "spec": spec}, original, labels, metrics, status)
    return Rendered(
        pod=pod,
        status=status,
        sidecar=(*init, proxy),
        volumes=tuple(ours),
        problems=(*metrics.problems, *_too_long(proxy), *(_unverifiable(plan) if captured else ())),
        remarks=(*rewriting.remarks, *metrics.remarks, *_remarks(plan, base, captured=captured)),
    )


def grace_seconds(pod: Mapping[str, Any]) -> int:
    """How long the kubelet lets the pod terminate."""
    found = podjson.spec(pod).get("terminationGracePeriodSeconds")
    return found if type(found) is int else DEFAULT_GRACE_SECONDS


def _plan(
    base: Json,
    options: PodOptions,
    settings: InjectorSettings,
    rewriting: Rewriting,
    metrics: metadata.Metrics,
    *,
    native: bool,
    workload: str,
    proxy_uid: int,
) -> Plan:
    delay = options.termination_delay
    if delay is None:
        delay = max(0, min(grace_seconds(base) - _KILL_MARGIN_SECONDS, _LONGEST_DELAY_SECONDS))
    targets = metrics.targets
    shape = Shape(
        workload=metadata.label_value(workload),
        trust_domain=settings.trust_domain,
        probes=tuple(rewriting.probes),
        captured=options.interception is InterceptionMode.REDIRECT,
        prestop_seconds=None if native or not delay else delay,
        metrics=None if targets is None else tuple(MetricsTarget(t.port, t.path) for t in targets),
        stats_prefixes=options.stats_prefixes,
        stats_suffixes=options.stats_suffixes,
    )
    finite = podjson.spec(base).get("restartPolicy") in {"Never", "OnFailure"}
    return Plan(
        options=options,
        settings=settings,
        shape=shape,
        proxy_uid=proxy_uid,
        native=native,
        hold=not native and options.hold_application,
        finite=not native and (finite or podjson.owner(base)[0] == "Job"),
        prestop_seconds=shape.prestop_seconds,
    )


def _with_proxy(raw: Mapping[str, Any], others: list[Json], proxy: Json, *, first: bool) -> list[Json]:
    """First when it holds the others back; else last, or where it is."""
    if first:
        return [proxy, *others]
    return _in_place(raw, "containers", others, [proxy])


def _in_place(raw: Mapping[str, Any], name: str, others: Sequence[Json], ours: Iterable[Json]) -> list[Json]:
    """Our items where the pod has them already, the rest of ours at the end."""
    left = {item["name"]: item for item in ours}
    remaining = iter(others)
    present = {item.get("name") for item in others}
    result: list[Json] = []
    for item in podjson.listed(raw, name):
        if item.get("name") in left:
            result.append(settle(item, left.pop(item["name"])))
        elif item.get("name") in present:
            result.append(next(remaining))
    return [*result, *remaining, *left.values()]


def _volumes(base: Json, options: PodOptions) -> list[Json]:
    """Ours and those of annotations; a volume that the author declared as we would is theirs."""
    own = {v["name"] for v in podjson.listed(base, "volumes")}
    wanted = [volume(), *({"name": n, **source} for n, source in sorted(options.user_volumes.items()))]
    return [v for v in wanted if v["name"] not in own]


def _pull_secrets(base: Json, settings: InjectorSettings) -> list[Json]:
    own = {s.get("name") for s in podjson.listed(base, "imagePullSecrets")}
    return [{"name": name} for name in settings.image_pull_secrets if name not in own]


def _put(spec: Json, raw: Mapping[str, Any], name: str, items: list[Json]) -> None:
    """Set a list, as the very same object when nothing of it changed."""
    before = podjson.spec(raw).get(name)
    if not items:
        # An empty list or null that the author wrote stays as it is.
        if before:
            spec.pop(name, None)
        elif name in podjson.spec(raw):
            spec[name] = before
        return
    same = before is not None and [id(item) for item in before] == [id(item) for item in items]
    spec[name] = before if same else items


def _with_metadata(
    pod: Json,
    original: Original,
    labels: dict[str, str],
    metrics: metadata.Metrics,
    status: Status,
) -> tuple[Json, Status]:
    base = original.pod
    annotations = metadata.added_annotations(base, status.revision)
    own = podjson.annotations_of(base)
    removed: tuple[str, ...] = ()
    if metrics.targets is not None:
        annotations |= metadata.SCRAPED
        removed = metrics.remove
    changed = {key: own.get(key) for key in (*annotations, *removed)}
    kept = podjson.without(own, *removed)
    if original.declared is not None:
        annotations[OVERRIDES] = overrides.to_json(original.declared)
    pod = podjson.with_metadata(
        pod,
        labels={**podjson.labels_of(base), **labels},
        annotations={**kept, **annotations},
    )
    return pod, replace(status, labels=tuple(sorted(labels)), annotations=changed)


def _too_long(proxy: Json) -> list[str]:
    size = max(len(argument) for argument in proxy["args"])
    if size <= MAX_BYTES:
        return []
    return [f"the proxy's configuration has {size} bytes, {MAX_BYTES} are possible; next: remove some probes"]


def _unverifiable(plan: Plan) -> list[str]:
    """Rules that a pod without rights could not tell from none: it would wait for ever."""
    config = capture_config(plan.options, plan.settings, plan.proxy_uid)
    if not plan.settings.node_capture or probe_port(config) is not None:
        return []
    text = (
        "traffic.sidecar.istio.io/excludeInterfaces names lo, or excludeOutboundPorts names every port: where"
        " nodes capture, a pod could not tell that its rules are in force; next: leave one of them out"
    )
    return [text]


def _remarks(plan: Plan, base: Json, *, captured: bool) -> list[str]:
    found = []
    if not plan.native and captured and podjson.listed(base, "initContainers"):
        found.append("init containers run before the proxy: what they send has no identity")
    if not plan.native and not plan.hold:
        hooks = [
            c["name"]
            for c in podjson.listed(base, "containers")
            if (c.get("lifecycle") or {}).get("postStart")
        ]
        if hooks:
            found.append(f"postStart of {hooks[0]} may run before the proxy is ready")
    if podjson.spec(base).get("dnsPolicy") in {"Default", "None"}:
        found.append("dnsPolicy is not ClusterFirst: names of services may not resolve")
    return found
