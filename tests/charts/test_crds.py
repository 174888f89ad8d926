"""The policy kinds: their schemas know the fields that the parser knows, neither more nor less."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from injector.core.policies import CONDITION
from mesh.policy.codes import PolicyCode
from mesh.policy.model import API_VERSIONS, KINDS
from mesh.policy.parse import parse_policy
from mesh.policy.rules import RULES, schema_path
from tests.fakes.crd_rules import definitions
from tests.fakes.helm import Rendered, render

SAMPLE: dict[str, Any] = {
    "PeerAuthentication": {"selector": {}, "mtls": {}, "portLevelMtls": {"80": {}}},
    "RequestAuthentication": {
        "selector": {},
        "targetRef": {},
        "targetRefs": [{}],
        "jwtRules": [{"fromHeaders": [{}], "outputClaimToHeaders": [{}]}],
    },
    "AuthorizationPolicy": {
        "selector": {},
        "targetRef": {},
        "targetRefs": [{}],
        "rules": [{"from": [{"source": {}}], "to": [{"operation": {}}], "when": [{}]}],
    },
}
# Known to the parser only to be refused with a sentence of its own.
REFUSED = {"provider"}
UNKNOWN = "noSuchField"


def _definitions(chart: Rendered) -> dict[str, dict[str, Any]]:
    return {item["spec"]["names"]["kind"]: item for item in chart.all("CustomResourceDefinition")}


def _spec(kind: str) -> Any:
    version = _definitions(render())[kind]["spec"]["versions"][0]
    return version["schema"]["openAPIV3Schema"]["properties"]["spec"]


def _marked(value: Any) -> Any:
    """A copy with an unknown field in every object that has fixed fields."""
    if isinstance(value, list):
        return [_marked(item) for item in value]
    if not isinstance(value, dict):
        return value
    marked = {key: _marked(item) for key, item in value.items()}
    return marked if list(value) == ["80"] else {**marked, UNKNOWN: 1}


def _allowed(kind: str) -> dict[str, set[str]]:
    """Fields that the parser allows, by path; it lists them when it refuses one."""
    document = {
        "apiVersion": API_VERSIONS[0],
        "kind": kind,
        "metadata": {"name": "a", "namespace": "b"},
        "spec": _marked(copy.deepcopy(SAMPLE[kind])),
    }
    found: dict[str, set[str]] = {}
    for finding in parse_policy(document).findings:
        if finding.code == PolicyCode.UNKNOWN_FIELD and UNKNOWN in finding.message:
            path = finding.field.removesuffix(f".{UNKNOWN}")
            text = finding.message.partition("allowed here: ")[2].partition(";")[0]
            path = path.replace("targetRef[0]", "targetRef")  # read as a list of one
            found[path] = set(text.split(", ")) - REFUSED
    return found


def _declared(schema: Any, path: str = "spec") -> Iterator[tuple[str, set[str]]]:
    """Fields that a schema declares, by path."""
    if schema["type"] == "array":
        yield from _declared(schema["items"], f"{path}[0]")
    elif "properties" in schema:
        yield path, set(schema["properties"])
        for name, child in schema["properties"].items():
            yield from _declared(child, f"{path}.{name}")
    elif (
        isinstance(schema.get("additionalProperties"), dict)
        and schema["additionalProperties"]["type"] == "object"
    ):
        yield from _declared(schema["additionalProperties"], f"{path}.80")


@pytest.mark.parametrize("kind", KINDS)
def test_schema_and_parser_know_the_same_fields(kind: str) -> None:
    allowed, declared = _allowed(kind), dict(_declared(_spec(kind)))
    assert len(allowed) >= 3
    assert declared == {path.replace('["80"]', ".80"): fields for path, fields in allowed.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_reach_the_parser(kind: str) -> None:
    """A field that the API server drops would make a rule match more than its author wrote."""

    def closed(schema: Any, path: str) -> Iterator[str]:
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield path
        for name, child in schema.get("properties", {}).items():
            yield from closed(child, f"{path}.{name}")
        if "items" in schema:
            yield from closed(schema["items"], f"{path}[]")

    version = _definitions(render())[kind]["spec"]["versions"][0]
    assert list(closed(version["schema"]["openAPIV3Schema"], "$")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_versions_and_names(kind: str) -> None:
    spec = _definitions(render())[kind]["spec"]
    assert spec["group"] == "security.istio.io"
    assert spec["scope"] == "Namespaced"
    assert [version["name"] for version in spec["versions"]] == ["v1", "v1beta1"]
    assert [version["storage"] for version in spec["versions"]] == [True, False]
    first, second = (version["schema"] for version in spec["versions"])
    assert first == second
    assert all(version["subresources"] == {"status": {}} for version in spec["versions"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_condition_that_upkeep_writes_has_a_column(kind: str) -> None:
    for version in _definitions(render())[kind]["spec"]["versions"]:
        columns = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
        assert columns["Accepted"] == f'.status.conditions[?(@.type=="{CONDITION}")].status'
        status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
        fields = {"type", "status", "reason", "message", "observedGeneration", "lastTransitionTime"}
        assert set(status["conditions"]["items"]["properties"]) == fields


def test_definitions_may_be_left_to_istio_or_kept() -> None:
    assert not _definitions(render(values={"crds": {"install": False}}))
    policy = "helm.sh/resource-policy"
    for keep in (True, False):
        for item in _definitions(render(values={"crds": {"keep": keep}})).values():
            assert item["metadata"].get("annotations", {}).get(policy) == ("keep" if keep else None)


# --- rules in CEL ----------------------------------------------------------------------------------

PLACE = "x-kubernetes-validations"


def _without_rules(schema: Any, path: tuple[str, ...], found: dict[tuple[str, ...], Any]) -> Any:
    """A copy without rules; they are put into `found`, by the steps to them."""
    if isinstance(schema, list):
        return [_without_rules(item, path, found) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if PLACE in schema:
        found[path] = schema[PLACE]
    rest = {name: item for name, item in schema.items() if name != PLACE}
    return {name: _without_rules(item, (*path, name), found) for name, item in rest.items()}


@pytest.mark.parametrize("kube", ["1.30.0", "1.30.0-rc.1", "v1.33.1-gke.55", "1.37.0"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_rule_of_the_table_is_at_its_places_and_nothing_else_differs(kind: str, kube: str) -> None:
    wanted: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for rule in RULES:
        for of, place in rule.places:
            if of == kind:
                text = {"rule": rule.expression, "message": rule.message}
                wanted.setdefault(tuple(schema_path(place)), []).append(text)
    new, old = definitions(kube)[kind], definitions("1.20.0")[kind]
    for version, plain in zip(new["spec"]["versions"], old["spec"]["versions"], strict=True):
        found: dict[tuple[str, ...], Any] = {}
        schema = _without_rules(version["schema"]["openAPIV3Schema"], (), found)
        assert found == wanted
        assert {**version, "schema": {"openAPIV3Schema": schema}} == plain
    assert {**new, "spec": {**new["spec"], "versions": old["spec"]["versions"]}} == old


@pytest.mark.parametrize("kube", ["1.20.2", "1.24.17", "1.25.0", "1.29.14-eks-1"])
def test_older_servers_get_no_rules(kube: str) -> None:
    """Below 1.25 they are unknown; below 1.30 an object that was stored broken could not even be labelled."""
    assert PLACE not in render(kube=kube).text
    assert definitions(kube) == definitions("1.20.0")


def test_rules_have_fields_only_that_every_server_with_rules_knows() -> None:
    """A newer field is dropped by an older server, and refused by a client that validates strictly."""
    for item in definitions().values():
        for version in item["spec"]["versions"]:
            found: dict[tuple[str, ...], Any] = {}
            _without_rules(version["schema"], (), found)
            assert found
            for rules in found.values():
                assert all(set(rule) == {"rule", "message"} for rule in rules)
