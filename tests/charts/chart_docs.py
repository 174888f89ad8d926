"""Tables of the documentation that are read off the chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.golden import updating
from tests.fakes.helm import CHART, ROOT, render

SECURITY_MODEL = ROOT / "docs" / "security-model.md"
README = CHART / "README.md"
WHY = {
    "ca/pods": "a token counts while its pod lives",
    "ca/namespaces": "where the roots are published",
    "ca/configmaps": "the roots, in every namespace",
    "ca/configmaps gatehouse-ca": "the record of the root, where its rotation stands, what people ask for",
    "ca/configmaps gatehouse-ca-agents": "what node agents told each replica",
    "ca/clustertrustbundles": "the roots for the whole cluster, where that kind is served",
    "ca/signers": "the name that the trust bundle is published under",
    "ca/clusterroles": "owner of the published roots: they go with the release",
    "ca/secrets": "root and key",
    "ca/leases": "who leads",
    "ca/tokenreviews": "with `ca.tokenReview` only",
    "ca/nonResourceURLs": "the cluster's token keys",
    "injector/namespaces": "labels, and default annotations for pods",
    "injector/configmaps": "versions of kubelets, as `upkeep` publishes them",
    "injector/events": "what was done with a pod; not with `injector.events=false`",
    "injector/mutatingwebhookconfigurations": "is the new root in `caBundle` already?",
    "upkeep/mutatingwebhookconfigurations": "`caBundle` of the chart's own configurations",
    "upkeep/validatingwebhookconfigurations": "likewise; not with `injector.policyWebhook.enabled=false`",
    "upkeep/requestauthentications": "which key sets to fetch",
    "upkeep/nodes": "the oldest kubelet, which decides about native sidecars",
    "upkeep/peerauthentications": "Events and conditions on policies; not with both turned off",
    "upkeep/peerauthentications/status": "the condition `Accepted`; not with `upkeep.policyStatus=false`",
    "upkeep/events": "Events on policies; not with `injector.events=false`",
    "upkeep/configmaps": "the fetched key sets, versions of kubelets, the roots in force",
    "upkeep/leases": "who leads",
    "capture/pods": "with `capture.mode=node` only: which pods of its node want rules",
    "capture/events": "why a pod does not get its rules; not with `injector.events=false`",
    "nodeagent/peerauthentications": "policies",
    "nodeagent/pods": "what runs where",
    "nodeagent/endpointslices": "where services live",
    "nodeagent/configmaps": "the fetched key sets",
}
_MARK = re.compile(r"(<!-- generated: (?P<name>[a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KEY = re.compile(r"([A-Za-z./-]+):.*")


def rights_table() -> str:
    """Every right of every process, from the rendered roles."""
    chart = render(values={"ca": {"tokenReview": True}, "capture": {"mode": "node"}})
    lines = ["| process | where | may | what | why |", "| --- | --- | --- | --- | --- |"]
    roles = sorted(chart.all("ClusterRole", "Role"), key=_order)
    for role in roles:
        component = role["metadata"]["name"].removeprefix("gatehouse-")
        where = "cluster" if role["kind"] == "ClusterRole" else "own namespace"
        for rule in role["rules"]:
            names = ", ".join(f"`{name}`" for name in rule.get("resourceNames", ()))
            only = f": {names} only" if names else ""
            what = ", ".join(rule.get("resources", rule.get("nonResourceURLs", ())))
            first = rule.get("resources", ["nonResourceURLs"])[0]
            specific = f"{component}/{first} {' '.join(rule.get('resourceNames', ()))}"
            why = WHY.get(specific, WHY.get(f"{component}/{first}"))
            assert why, f"say why {component} may {rule['verbs']} {first} (tests/charts/chart_docs.py)"
            may = ", ".join(rule["verbs"])
            lines.append(f"| {component} | {where} | {may} | {what}{only} | {why} |")
    return "\n".join(lines) + "\n"


def _order(role: dict[str, Any]) -> tuple[int, str]:
    name = role["metadata"]["name"].removeprefix("gatehouse-")
    return ("ca", "injector", "upkeep", "nodeagent", "capture").index(name), role["kind"]


def values_table() -> str:
    """Every key of values.yaml with its default and its comment."""
    lines = ["| key | default | what it does |", "| --- | --- | --- |"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    path: list[tuple[int, str]] = []
    doc: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if text.startswith("# --"):
            doc = [text.removeprefix("# --").strip()]
        elif text.startswith("#"):
            doc = [*doc, text.removeprefix("#").strip()] if doc else []
        elif found := _KEY.fullmatch(text):
            path = [step for step in path if step[0] < indent] + [(indent, found[1])]
            if doc or found[1] == "resources":
                value = values
                for _, key in path:
                    value = value[key]
                name = ".".join(key for _, key in path)
                said = " ".join(doc) or "Requests and limits."
                default = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
                default = default.removesuffix("\n...").strip()
                lines.append(f"| `{name}` | `{default}` | {said.replace('|', chr(92) + '|')} |")
            doc = []
    return "\n".join(lines) + "\n"


TABLES = {SECURITY_MODEL: {"rights": rights_table}, README: {"values": values_table}}


def check(file: Path) -> None:
    """Compare the generated parts of a page, or write them with `make golden`."""
    text = file.read_text()
    found = [match["name"] for match in _MARK.finditer(text)]
    assert found == list(TABLES[file])
    new = _MARK.sub(lambda match: match[1] + TABLES[file][match["name"]]() + match[3], text)
    if updating():
        file.write_text(new)
    assert file.read_text() == new, f"{file} is out of date; next: make golden"
