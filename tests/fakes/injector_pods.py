"""Pods for tests of injection, and what a kubelet makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from injector.core.bootstrap import expand
from injector.core.inject import ClusterFeatures, InjectorSettings, Result, inject
from injector.core.patch import apply_patch

ENABLED = {"istio-injection": "enabled"}
CLASSIC, NATIVE = ClusterFeatures(native_sidecars=False), ClusterFeatures(native_sidecars=True)


def container(name: str = "web", **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "registry.example/app:1", **fields}


def a_pod(
    *containers: dict[str, Any],
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A raw pod; without arguments, with one plain container."""
    metadata: dict[str, Any] = {"name": "web", "namespace": "shop"}
    if labels is not None:
        metadata["labels"] = dict(labels)
    if annotations is not None:
        metadata["annotations"] = dict(annotations)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": list(containers) or [container()], **spec},
    }


def injecting(pod: Mapping[str, Any], features: ClusterFeatures = NATIVE, **changes: Any) -> Result:
    """`inject` in a labelled namespace; keyword arguments replace the usual ones."""
    arguments: dict[str, Any] = {
        "namespace": "shop",
        "namespace_labels": ENABLED,
        "namespace_annotations": {},
        "config": InjectorSettings(),
        "capabilities": features,
    }
    return inject(pod, **(arguments | changes))


def injected(pod: Mapping[str, Any], features: ClusterFeatures = NATIVE, **changes: Any) -> dict[str, Any]:
    """The pod after its patch; fails when it was refused."""
    result = injecting(pod, features, **changes)
    assert not result.problems, result.problems
    assert result.patch, result.decision
    return apply_patch(pod, result.patch)


def find(pod: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A container of any list."""
    spec = pod["spec"]
    every = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    found: dict[str, Any] = next(c for c in every if c["name"] == name)
    return found


def names(pod: Mapping[str, Any], kind: str = "containers") -> list[str]:
    return [c["name"] for c in pod["spec"].get(kind) or ()]


def status(pod: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(pod["metadata"]["annotations"]["sidecar.istio.io/status"])
    return data


def proxy_arguments(pod: Mapping[str, Any], address: str = "10.1.2.3") -> list[str]:
    """Arguments of istio-proxy as the kubelet expands them."""
    variables = {"POD_NAME": "web", "POD_NAMESPACE": "shop", "POD_IP": address}
    return [expand(argument, variables) for argument in find(pod, "istio-proxy")["args"]]


def bootstrap_of(pod: Mapping[str, Any], address: str = "10.1.2.3") -> dict[str, Any]:
    """The bootstrap of istio-proxy, as Envoy reads it."""
    arguments = proxy_arguments(pod, address)
    data: dict[str, Any] = json.loads(arguments[arguments.index("--config-yaml") + 1])
    return data
