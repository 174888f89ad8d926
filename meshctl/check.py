"""`meshctl check`: what is wrong in a cluster, and what is to be done about it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from meshctl.checks import control, policies, workloads
from meshctl.checks.before import BEFORE, api_version, nodes, other_meshes
from meshctl.checks.rotation import rotation
from meshctl.checks.rows import Check, Row, Status, View, fail, run_check
from meshctl.cluster import connect, find_installation
from meshctl.exits import EXIT_OK, EXIT_PROBLEM
from meshctl.terminal import Colour, Screen, counted, wrapped
from meshctl.traffic.wish import read_wish

AFTER: Final[Mapping[str, Mapping[str, Check]]] = {
    "cluster": {"api-version": api_version, "other-meshes": other_meshes, "two-meshes": workloads.two_meshes},
    "control plane": {
        "installed": control.installed,
        "deployments": control.deployments,
        "roots": control.roots,
        "rotation": rotation,
    },
    "webhook": {
        "ca-bundle": control.ca_bundle,
        "webhook-call": control.webhook_call,
        "policy-webhook": policies.policy_webhook,
        "protected": workloads.protected,
    },
    "nodes": {
        "nodes": nodes,
        "csi-driver": control.csi_driver,
        "node-agents": control.node_agents,
        "capture-agents": control.capture_agents,
    },
    "workloads": {
        "policies": policies.refused_policies,
        "namespaces": workloads.namespaces,
        "pods-without": workloads.missing_sidecars,
        "pods-stale": workloads.stale_sidecars,
        "pods-broken": workloads.broken_sidecars,
    },
}
"""Section -> check by name, in the order in which they are told."""

MAX_OBJECTS: Final = 5
_COLOURS: Final = {
    Status.OK: Colour.GREEN,
    Status.WARN: Colour.YELLOW,
    Status.FAIL: Colour.RED,
    Status.SKIP: Colour.DIM,
}


def run_check_command(options: argparse.Namespace, screen: Screen) -> int:
    """Check, before the installation or after it."""
    wish = read_wish(options)
    cluster = connect(options)
    if options.pre:
        sections = _run(BEFORE, View(cluster))
    else:
        found = find_installation(cluster)
        if found is None:
            row = fail(
                "installed",
                "Gatehouse is not installed: no webhook configuration has the label app=gatehouse",
                "meshctl check --pre, then: helm install gatehouse charts/gatehouse -n istio-system"
                " --create-namespace",
            )
            sections = {"control plane": [row]}
        else:
            view = View(cluster, found, options.namespace)
            sections = _run(AFTER, view)
            if wish is not None:
                from meshctl.traffic.run import check_traffic

                rows_of = partial(check_traffic, wish=wish, screen=screen)
                sections = {**sections, "traffic": run_check("traffic-setup", rows_of, view)}
    rows = [row for section in sections.values() for row in section]
    failed = sum(row.status is Status.FAIL for row in rows)
    if options.output == "json":
        counts = {status.value: sum(row.status is status for row in rows) for status in Status}
        listed = [{"section": name, **row.to_json()} for name, section in sections.items() for row in section]
        screen.say_json({"ok": not failed, "summary": counts, "rows": listed})
    else:
        _show(screen, sections, options)
    return EXIT_PROBLEM if failed else EXIT_OK


def _run(sections: Mapping[str, Mapping[str, Check]], view: View) -> Mapping[str, Sequence[Row]]:
    return {
        section: [row for name, check in checks.items() for row in run_check(name, check, view)]
        for section, checks in sections.items()
    }


def _show(screen: Screen, sections: Mapping[str, Sequence[Row]], options: argparse.Namespace) -> None:
    rows = [row for section in sections.values() for row in section]
    for name, section in sections.items():
        if not section:
            continue
        screen.say(screen.paint(name, Colour.BOLD))
        for row in section:
            _show_row(screen, row)
        screen.say()
    order = (Status.OK, Status.WARN, Status.FAIL, Status.SKIP)
    screen.say(counted((sum(row.status is status for row in rows), status.value) for status in order))
    if any(row.status is Status.FAIL for row in rows):
        screen.say("next: what the first fail says, then check again")
    elif options.pre:
        screen.say("next: helm install gatehouse charts/gatehouse -n istio-system --create-namespace")


def _show_row(screen: Screen, row: Row) -> None:
    mark = screen.paint(f"{row.status.value:4}", _COLOURS[row.status])
    lines = wrapped(row.message, first=" " * 8, rest=" " * 8).removeprefix(" " * 8)
    screen.say(f"  {mark}  {lines}")
    for name in row.objects[:MAX_OBJECTS]:
        screen.say(wrapped(name, first=" " * 10 + "- ", rest=" " * 12))
    if len(row.objects) > MAX_OBJECTS:
        screen.say(f"{'':10}- and {len(row.objects) - MAX_OBJECTS} more; all of them: -o json")
    if row.next and row.status is not Status.OK:
        first = " " * 8 + "next: "
        for step in row.next.split("; "):  # a command on a line of its own can be copied
            screen.say(wrapped(step, first=first, rest=" " * 16))
            first = " " * 14
