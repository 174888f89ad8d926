"""Labels and annotations of an injected pod, and the names that they are made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from injector.core import podjson
from injector.core.keys import (
    CANONICAL_NAME,
    CANONICAL_REVISION,
    DEFAULT_CONTAINER,
    DEFAULT_LOGS_CONTAINER,
    REVISION,
    TLS_MODE,
)
from injector.core.options import InterceptionMode, PodOptions
from injector.core.podjson import Json
from injector.core.values import ScrapeTarget, scrape_target
from mesh import ports
from mesh.envoy.bootstrap import STATS_PATH

MAX_LABEL: Final = 63
SCRAPED: Final = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(ports.PROBE),
    "prometheus.io/path": STATS_PATH,
}
"""What Prometheus is told when metrics are merged."""

# Prometheus makes the same name of all three spellings.
_SPELLINGS = ("prometheus.io/", "prometheus.io.", "prometheus-io/")
_CRONJOB = re.compile(r"(?P<name>.+)-[0-9]{8,10}")
_NOT_LABEL = re.compile(r"[^A-Za-z0-9_.-]")


def workload_name(pod: Mapping[str, Any], hint: str = "") -> str:
    """Name of the workload a pod belongs to, from the pod alone; empty when it has no name yet.

    The owner counts whether or not the pod has a `generateName`: workflow engines create pods with
    fixed names.
    """
    if hint:
        return hint
    labels, meta = podjson.labels_of(pod), podjson.metadata(pod)
    kind, name = podjson.owner(pod)
    if kind == "ReplicaSet":
        for label in ("pod-template-hash", "rollouts-pod-template-hash"):
            suffix = f"-{labels.get(label)}"
            if label in labels and name.endswith(suffix):
                return name.removesuffix(suffix)
    if kind == "ReplicationController" and labels.get("deploymentconfig"):
        return labels["deploymentconfig"]
    if kind == "Job":
        match = _CRONJOB.fullmatch(name)
        return match["name"] if match else name
    return name or str(meta.get("name") or "") or str(meta.get("generateName") or "").rstrip("-")


def label_value(text: str) -> str:
    """The text as the value of a label: cut at 63 characters, no punctuation at its ends."""
    return _NOT_LABEL.sub("-", text)[:MAX_LABEL].strip("-_.")


def added_labels(pod: Mapping[str, Any], options: PodOptions, workload: str) -> dict[str, str]:
    """Labels to set: only those that the pod does not have."""
    own = podjson.labels_of(pod)
    name = own.get("app.kubernetes.io/name") or own.get("app") or workload
    revision = own.get("app.kubernetes.io/version") or own.get("version") or "latest"
    captured = options.interception is InterceptionMode.REDIRECT
    wanted = {
        # Without capture nobody answers mutual TLS on the application's ports.
        TLS_MODE: "istio" if captured else "disabled",
        CANONICAL_NAME: label_value(name),
        CANONICAL_REVISION: label_value(revision),
    }
    return {key: value for key, value in wanted.items() if value and key not in own}


def added_annotations(pod: Mapping[str, Any], revision: str) -> dict[str, str]:
    """Annotations to set, without those of Prometheus."""
    own = podjson.annotations_of(pod)
    containers = podjson.listed(pod, "containers")
    found = {REVISION: revision}
    if containers:
        # `kubectl exec` and `logs` mean the application.
        found |= {
            key: containers[0]["name"]
            for key in (DEFAULT_CONTAINER, DEFAULT_LOGS_CONTAINER)
            if key not in own
        }
    return found


@dataclass(frozen=True, slots=True)
class Metrics:
    """How a pod's metrics are scraped.

    Attributes:
        targets: of the application, merged with the proxy's; None = not merged, nothing is touched.
        remove: other spellings of the annotations that are set.
        problems: sentences; `remarks`: why metrics are left alone although they could be merged.
    """

    targets: tuple[ScrapeTarget, ...] | None = None
    remove: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=())


def metrics(pod: Mapping[str, Any], options: PodOptions) -> Metrics:
    """What Prometheus is told now and where the metrics come from."""
    own = podjson.annotations_of(pod)
    said = {
        name: (f"{prefix}{name}", own[f"{prefix}{name}"])
        for prefix in reversed(_SPELLINGS)
        for name in ("scrape", "port", "path", "scheme")
        if f"{prefix}{name}" in own
    }
    if not options.merge_metrics or said.get("scrape", ("", ""))[1].lower() == "false":
        return Metrics()
    if said.get("scheme", ("", ""))[1].lower() == "https":
        return Metrics(remarks=("metrics are not merged: the application serves them over TLS",))
    remove = tuple(
        f"{prefix}{name}"
        for prefix in _SPELLINGS[1:]
        for name in ("scrape", "port", "path")
        if f"{prefix}{name}" in own
    )
    if options.scrape_targets:
        return Metrics(options.scrape_targets, remove)
    if said.get("scrape", ("", ""))[1].lower() != "true":
        return Metrics((), remove)
    key, port = said.get("port", ("prometheus.io/port", _first_port(pod)))
    if not port:
        return Metrics((), remove, remarks=("no port for prometheus.io/scrape: only the proxy is scraped",))
    try:
        return Metrics((scrape_target(port.strip(), said.get("path", ("", ""))[1].strip()),), remove)
    except ValueError as error:
        return Metrics(problems=(f"invalid value {port[:60]!r} for annotation {key!r}: {error}",))


def _first_port(pod: Mapping[str, Any]) -> str:
    """The first declared port, as Prometheus takes it when no annotation names one."""
    containers: list[Json] = podjson.listed(pod, "containers")
    declared = [port.get("containerPort") for c in containers for port in c.get("ports") or ()]
    return str(declared[0]) if declared else ""
