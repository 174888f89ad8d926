"""After the installation: what the authority says of its roots and their rotation."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.errors import MeshError
from mesh.kube.api import KubeError
from meshctl.ca import read_status
from meshctl.checks.rows import Row, View, ok, warn
from meshctl.rotation import problems


def rotation(view: View) -> Iterator[Row]:
    """Somebody leads, the steps go on, and every agent has acknowledged the roots."""
    namespace = view.installed.namespace
    try:
        seen = read_status(view.cluster, namespace)
    except KubeError:
        raise
    except MeshError as error:
        what, _, how = error.public.partition("; next: ")
        yield warn("rotation", f"{what} [{error.code}]", how or "meshctl ca status")
        return
    status = seen.status
    found = problems(status, view.cluster.local_now(), namespace, asked=seen.asked)
    for problem in found:
        yield warn("rotation", problem.text, problem.next)
    if not found:
        agents = status.agents
        told = (
            f"; {agents.acked} of {agents.expected} node agents have acknowledged them"
            if agents.expected
            else ""
        )
        yield ok("rotation", f"rotation of roots: {status.phase}{told}")
