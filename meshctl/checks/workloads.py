"""After the installation: namespaces that ask for sidecars, and pods that have them, should, or are stale."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any, Final

from injector.core import podjson
from injector.core.decision import DEFAULT_REVISION, INIT, PROXY, VALIDATION, Outcome, decide
from injector.core.keys import DISABLED, ENABLED, NAMESPACE_LABEL, REVISION
from meshctl.checks.before import read_time
from meshctl.checks.control import is_pod_ready
from meshctl.checks.rows import Row, View, fail, many, ok, skip, warn
from meshctl.cluster import WEBHOOKS, full_name, labels_of, metadata_of, namespace_of
from meshctl.sidecars import is_over, restart_command, status_of
from meshctl.traffic.plan import NAME, NAME_LABEL
from meshctl.webhooks import evaluate

_START: Final = dt.timedelta(seconds=60)


def namespaces(view: View) -> Iterator[Row]:
    """Namespaces ask for sidecars, in words that are understood."""
    config = view.installed.config
    chosen = config.injection.selection if config is not None else None
    revisions = {chosen.revision, *chosen.tags} if chosen is not None else {DEFAULT_REVISION}
    asking: list[str] = []
    odd: list[str] = []
    strange: list[str] = []
    for name, item in sorted(view.cluster.namespaces().items()):
        labels = labels_of(item)
        if labels.get("app.kubernetes.io/part-of") == "gatehouse" or labels.get(NAME_LABEL) == NAME:
            continue  # of `helm test`, of `check --traffic`: nobody works there
        said, revision = labels.get(NAMESPACE_LABEL), labels.get(REVISION)
        if said is not None and said not in {ENABLED, DISABLED}:
            odd.append(f"{name} ({NAMESPACE_LABEL}={said})")
        elif said == ENABLED and DEFAULT_REVISION in revisions:
            asking.append(name)
        elif said is None and revision is not None:
            (asking if revision in revisions else strange).append(name)
    if odd:
        yield warn(
            "namespace-labels",
            f"namespaces with a label that means no, although it looks like yes; allowed are {ENABLED} and"
            f" {DISABLED}",
            f"kubectl label namespace {odd[0].split(' ')[0]} --overwrite {NAMESPACE_LABEL}={ENABLED}",
            odd,
        )
    if strange:
        yield warn(
            "namespace-revisions",
            f"namespaces name a revision that is not installed; installed are {', '.join(sorted(revisions))}",
            f"kubectl label namespace {strange[0]} --overwrite {REVISION}={min(revisions)}",
            strange,
        )
    everybody = chosen is not None and chosen.namespaces_by_default
    if asking or everybody:
        names = "every namespace that does not say no" if everybody else many(len(asking), "namespace")
        listed = f" ({', '.join(asking[:5])}{', ...' * (len(asking) > 5)})" if asking else ""
        yield ok("namespaces", f"{names} with sidecars{listed}")
    else:
        yield warn(
            "namespaces",
            "no namespace asks for sidecars",
            f"kubectl label namespace NAME {NAMESPACE_LABEL}={ENABLED}, then restart its deployments",
        )


def missing_sidecars(view: View) -> Iterator[Row]:
    """Pods that would get a sidecar if they were made now, and have none."""
    config = view.installed.config
    if config is None:
        yield skip("pods-without", "the settings of the injector cannot be read")
        return
    selection = config.settings().selection
    all_namespaces = view.cluster.namespaces()
    found: dict[str, list[str]] = {}
    for pod in view.pods:
        namespace = namespace_of(pod)
        labels = labels_of(all_namespaces.get(namespace) or {})
        if is_over(pod) or status_of(pod) is not None:
            continue
        if decide(pod, namespace, labels, selection).outcome is not Outcome.INJECT:
            continue
        called = evaluate(view.installed.webhooks, namespace_labels=labels, pod_labels=podjson.labels_of(pod))
        if any(webhook.called for webhook in called):
            found.setdefault(restart_command(pod, namespace), []).append(full_name(pod))
    names = sorted(name for group in found.values() for name in group)
    if names:
        more = f" (and {len(found) - 1} more commands like it)" if len(found) > 1 else ""
        yield warn(
            "pods-without",
            f"{many(len(names), 'pod')} without a sidecar that should have one: older than the label, or made"
            " while the webhook was away",
            f"{min(found)}{more}",
            names,
        )
    else:
        yield ok("pods-without", "no pod lacks its sidecar")


def stale_sidecars(view: View) -> Iterator[Row]:
    """Sidecars that were made by another version or with other settings."""
    config = view.installed.config
    injected = [(p, s) for p in view.pods if not is_over(p) and (s := status_of(p)) is not None]
    if config is None or not injected:
        return
    settings = config.settings()
    old = {}
    for pod, status in injected:
        if (status.version, status.digest) != (settings.version, settings.digest):
            old[full_name(pod)] = restart_command(pod, namespace_of(pod))
    if old:
        more = len(set(old.values())) - 1
        yield warn(
            "pods-stale",
            f"{len(old)} of {len(injected)} sidecars were made by another version or with other settings",
            f"{min(old.values())}{f' (and {more} more commands like it)' if more else ''}",
            sorted(old),
        )
    else:
        yield ok("pods-stale", f"{many(len(injected), 'sidecar')} made with the settings as they are now")


def broken_sidecars(view: View) -> Iterator[Row]:
    """Sidecars that run."""
    now = view.cluster.local_now()
    bad, injected = {}, 0
    for pod in view.pods:
        if is_over(pod) or status_of(pod) is None:
            continue
        injected += 1
        made = read_time(metadata_of(pod).get("creationTimestamp"))
        if is_pod_ready(pod) or (made is not None and now - made < _START):
            continue
        why = _sidecar_trouble(pod)
        if why:
            bad[full_name(pod)] = f"{full_name(pod)} ({why})"
    if bad:
        namespace, name = min(bad).split("/")
        yield fail(
            "pods-broken",
            f"{many(len(bad), 'sidecar')} not running",
            f"kubectl -n {namespace} describe pod {name}; meshctl identity -n {namespace} {name}",
            [bad[key] for key in sorted(bad)],
        )
    elif injected:
        yield ok("pods-broken", f"{many(injected, 'sidecar')} running")


def _sidecar_trouble(pod: Mapping[str, Any]) -> str:
    """What keeps our containers from running; empty when it is not they."""
    status = pod.get("status") or {}
    ours = [
        c
        for key in ("initContainerStatuses", "containerStatuses")
        for c in status.get(key) or ()
        if c.get("name") in {PROXY, INIT, VALIDATION}
    ]
    if not ours and (pod.get("spec") or {}).get("nodeName"):
        return "its volumes are not mounted yet: is the node agent there?"
    for container in ours:
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if waiting.get("reason") not in {None, "PodInitializing", "ContainerCreating"}:
            return f"{container['name']}: {waiting['reason']}"
        if waiting.get("reason") == "ContainerCreating":
            return f"{container['name']}: its volumes are not mounted yet: is the node agent there?"
        if ended.get("exitCode"):
            return f"{container['name']}: ended with {ended['exitCode']}"
        if container["name"] == VALIDATION and "running" in state:
            return f"{VALIDATION}: the capture agent of its node has not written the rules yet"
        if container["name"] == PROXY and "running" in state and not container.get("ready"):
            return "istio-proxy is not ready: it has no configuration or no certificate yet"
    return ""


def two_meshes(view: View) -> Iterator[Row]:
    """Namespaces where another mesh injects too."""
    configurations = view.cluster.items(WEBHOOKS)
    both = []
    for name, item in sorted(view.cluster.namespaces().items()):
        called = evaluate(configurations, namespace_labels=labels_of(item), pod_labels={})
        meshes = {w.mesh for w in called if w.called and w.mesh}
        if "gatehouse" in meshes and len(meshes) > 1:
            both.append(f"{name} ({', '.join(sorted(meshes))})")
    if both:
        yield fail(
            "two-meshes",
            "namespaces where several meshes put sidecars into the same pods",
            "take the labels of one mesh away from them",
            both,
        )


def protected(view: View) -> Iterator[Row]:
    """Our webhooks are never called for the pods that the cluster itself needs."""
    all_namespaces = view.cluster.namespaces()
    reached = []
    for name in ("kube-system", view.installed.namespace):
        labels = {**labels_of(all_namespaces.get(name) or {}), "kubernetes.io/metadata.name": name}
        pod = {"app.kubernetes.io/part-of": "gatehouse"} if name != "kube-system" else {}
        called = evaluate(view.installed.webhooks, namespace_labels=labels, pod_labels=pod)
        if any(w.called and w.failure_policy == "Fail" for w in called):
            reached.append(name)
    if reached:
        yield fail(
            "protected",
            "the webhook is called for namespaces that must start without it: a cluster that is down as a"
            " whole could not come back",
            f"kubectl label namespace {reached[0]} {NAMESPACE_LABEL}-",
            reached,
        )
    else:
        yield ok("protected", "kube-system and Gatehouse itself start without the webhook")
