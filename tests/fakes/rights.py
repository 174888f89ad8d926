"""The chart's roles as an API server's authorizer reads them, for requests that a fake one recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.fakes.helm import render
from tests.fakes.kube_answers import PATH, Request

_NAMESPACE = "istio-system"
_WRITES = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
# The role `system:discovery` of every cluster lets everybody ask these.
_DISCOVERY = re.compile(r"/version|/api(s(/[^/]+(/v[^/]+)?)?)?")
_ONE_NAME = re.compile(r"metadata\.name=([^,]+)")


@dataclass(frozen=True, slots=True)
class Need:
    """What a request takes: `resource` is a path for what is no resource; `name` is empty for all of them."""

    namespace: str
    group: str
    resource: str
    verb: str
    name: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.verb, f"{self.group}/{self.resource}", self.name, self.namespace)))


def need(request: Request) -> Need | None:
    """The right that a request takes; None when everybody has it."""
    if _DISCOVERY.fullmatch(request.path):
        return None
    match = PATH.fullmatch(request.path)
    if match is None:
        return Need("", "", request.path, request.method.lower(), "")
    resource = match["plural"] + (f"/{match['sub']}" if match["sub"] else "")
    namespace = match["ns"] or ""
    verb = _WRITES.get(request.method) or ("watch" if request.watch else "get" if match["name"] else "list")
    one = _ONE_NAME.fullmatch(request.query.get("fieldSelector", ""))
    name = match["name"] or (one[1] if one else "")
    return Need(namespace, match["group"] or "", resource, verb, name)


@dataclass(frozen=True, slots=True)
class Grant:
    """One verb on one resource that a role gives: everywhere, or in the release's namespace."""

    own: bool
    group: str
    resource: str
    verb: str
    names: frozenset[str]

    def covers(self, what: Need) -> bool:
        return (
            (not self.own or what.namespace == _NAMESPACE)
            and (self.group, self.resource, self.verb) == (what.group, what.resource, what.verb)
            and (not self.names or what.name in self.names)
        )

    def __str__(self) -> str:
        return " ".join([self.verb, f"{self.group}/{self.resource}", *sorted(self.names)])


def grants(process: str, values: Mapping[str, Any] | None = None) -> Iterator[Grant]:
    """Everything that the chart grants to a process."""
    for role in render(values=values).all("ClusterRole", "Role"):
        if role["metadata"]["name"] != f"gatehouse-{process}":
            continue
        for rule in role["rules"]:
            names = frozenset(rule.get("resourceNames", ()))
            for group in rule.get("apiGroups", [""]):
                for resource in (*rule.get("resources", ()), *rule.get("nonResourceURLs", ())):
                    for verb in rule["verbs"]:
                        yield Grant(role["kind"] == "Role", group, resource, verb, names)


def compare(
    process: str, requests: Iterable[Request], values: Mapping[str, Any] | None = None
) -> tuple[set[str], set[str]]:
    """What was asked without a right to it, and which rights nothing was asked with; in words."""
    given = list(grants(process, values))
    assert given, f"the chart has no role for {process}"
    needs = {found for request in requests if (found := need(request)) is not None}
    refused = {str(what) for what in needs if not any(grant.covers(what) for grant in given)}
    unused = {str(grant) for grant in given if not any(grant.covers(what) for what in needs)}
    return refused, unused
