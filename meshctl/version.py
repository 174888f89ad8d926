"""`meshctl version`: of this command, and of what runs in the cluster."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from meshctl.exits import EXIT_OK
from meshctl.terminal import Screen


def own_version() -> str:
    """Version of the package; `from a checkout` when it is not installed."""
    from importlib import metadata

    try:
        return metadata.version("gatehouse")
    except metadata.PackageNotFoundError:
        return "from a checkout"


def run_version(options: argparse.Namespace, screen: Screen) -> int:
    """Print versions."""
    found: dict[str, Any] = {"meshctl": own_version()}
    if options.cluster:
        found |= _of_cluster(options)
    if options.output == "json":
        screen.say_json(found)
        return EXIT_OK
    screen.say(f"meshctl        {found['meshctl']}")
    if options.cluster:
        screen.say(f"kubernetes     {found['kubernetes']}")
        for name, image in found["control_plane"].items():
            screen.say(f"{name:14} {image}")
        for sidecar in found["sidecars"]:
            screen.say(f"{sidecar['pods']:>4} sidecars  {sidecar['version']} ({sidecar['mode']})")
        if not found["control_plane"]:
            screen.remark("Gatehouse is not installed; next: meshctl check --pre")
    return EXIT_OK


def _of_cluster(options: argparse.Namespace) -> dict[str, Any]:
    from meshctl.cluster import PART_OF, connect, labels_of
    from meshctl.sidecars import status_of

    cluster = connect(options)
    server = cluster.api.get("/version")
    images = {}
    for kind in ("deployments", "daemonsets"):
        path = f"/apis/apps/v1/namespaces/{options.mesh_namespace}/{kind}"
        for item in cluster.items(path, PART_OF):
            containers = item["spec"]["template"]["spec"]["containers"]
            name = labels_of(item).get("app.kubernetes.io/component", str(containers[0].get("name")))
            images[name] = str(containers[0].get("image"))
    statuses = [status_of(pod) for pod in cluster.items("/api/v1/pods")]
    counts = Counter((s.version, s.mode) for s in statuses if s is not None)
    return {
        "kubernetes": str(server.get("gitVersion", "")),
        "control_plane": images,
        "sidecars": [
            {"version": version, "mode": mode, "pods": count}
            for (version, mode), count in sorted(counts.items())
        ],
    }
