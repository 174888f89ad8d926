"""Objects for the CEL rules of the policy kinds: each mistake by name, and objects made from a schema."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from hypothesis import strategies as st

from mesh.policy import rules
from mesh.policy.model import AUTHORIZATION_POLICY, PEER_AUTHENTICATION, REQUEST_AUTHENTICATION
from mesh.policy.rules import ITEMS, Rule
from tests.fakes.helm import render
from tests.fakes.policy_corpus import ROWS
from tests.fakes.policy_objects import policy_object

TARGET = {"kind": "Gateway", "name": "g", "group": "gateway.networking.k8s.io"}
LABELS = {"matchLabels": {"app": "web"}}
KEYS = '{"keys":[]}'
ISSUER = "https://i.example"
PORTS = {"80": {"mode": "STRICT"}}


def _source(**fields: list[str]) -> dict[str, Any]:
    return {"rules": [{}, {"from": [{"source": {"principals": ["a"]}}, {"source": fields}]}]}


MISTAKES: Final[list[tuple[Rule, str, dict[str, Any]]]] = [
    (rules.PORTS_NEED_SELECTOR, PEER_AUTHENTICATION, {"portLevelMtls": PORTS}),
    (rules.PORTS_NEED_SELECTOR, PEER_AUTHENTICATION, {"portLevelMtls": {}}),
    (rules.PORTS_NEED_SELECTOR, PEER_AUTHENTICATION, {"portLevelMtls": PORTS, "selector": {}}),
    (
        rules.PORTS_NEED_SELECTOR,
        PEER_AUTHENTICATION,
        {"portLevelMtls": PORTS, "selector": {"matchLabels": {}}},
    ),
    *(
        (rules.ONE_TARGET, kind, spec)
        for kind in (REQUEST_AUTHENTICATION, AUTHORIZATION_POLICY)
        for spec in (
            {"selector": LABELS, "targetRefs": [TARGET]},
            {"selector": {}, "targetRef": TARGET},
            {"targetRef": TARGET, "targetRefs": [TARGET]},
            {"selector": LABELS, "targetRef": TARGET, "targetRefs": [TARGET]},
        )
    ),
    (rules.ISSUER_OR_KEYS, REQUEST_AUTHENTICATION, {"jwtRules": [{"issuer": ISSUER}, {}]}),
    (rules.ISSUER_OR_KEYS, REQUEST_AUTHENTICATION, {"jwtRules": [{"jwks": KEYS}]}),
    (
        rules.ONE_KEY_SET,
        REQUEST_AUTHENTICATION,
        {"jwtRules": [{"issuer": ISSUER, "jwks": KEYS, "jwksUri": f"{ISSUER}/keys"}]},
    ),
    (rules.ACTION_NEEDS_RULES, AUTHORIZATION_POLICY, {"action": "DENY"}),
    (rules.ACTION_NEEDS_RULES, AUTHORIZATION_POLICY, {"action": "AUDIT", "selector": LABELS}),
    *(
        (rules.ONE_FORM_OF_CALLER, AUTHORIZATION_POLICY, _source(**{accounts: ["foo/sleep"], other: ["a"]}))
        for accounts in ("serviceAccounts", "notServiceAccounts")
        for other in ("principals", "notPrincipals", "namespaces", "notNamespaces")
    ),
    (rules.CONDITION_NEEDS_VALUES, AUTHORIZATION_POLICY, {"rules": [{"when": [{"key": "source.ip"}]}]}),
]
"""A rule, and the spec of an object of a kind that breaks it."""

NO_MISTAKES: Final[list[tuple[str, dict[str, Any]]]] = [
    (PEER_AUTHENTICATION, {"portLevelMtls": PORTS, "selector": LABELS}),
    (PEER_AUTHENTICATION, {"selector": {}}),
    (PEER_AUTHENTICATION, {}),
    (REQUEST_AUTHENTICATION, {"selector": LABELS, "jwtRules": [{"jwksUri": f"{ISSUER}/keys"}]}),
    (REQUEST_AUTHENTICATION, {"targetRefs": [TARGET], "jwtRules": []}),
    (REQUEST_AUTHENTICATION, {"jwtRules": [{"issuer": ISSUER}]}),
    (AUTHORIZATION_POLICY, {}),
    (AUTHORIZATION_POLICY, {"targetRef": TARGET}),
    (AUTHORIZATION_POLICY, {"action": "ALLOW"}),
    (AUTHORIZATION_POLICY, {"action": "DENY", "rules": [{}]}),
    (AUTHORIZATION_POLICY, _source(serviceAccounts=["foo/sleep"], notServiceAccounts=["foo/other"])),
    (AUTHORIZATION_POLICY, _source(principals=["b"], notNamespaces=["bar"])),
    (AUTHORIZATION_POLICY, {"rules": [{"when": [{"key": "source.ip", "notValues": ["10.0.0.1"]}]}]}),
]
"""Objects that are accepted, each near to a mistake."""


_FIELDS: Final[dict[str, list[Any]]] = {
    "portLevelMtls": [{}, PORTS],
    "selector": [{}, {"matchLabels": {}}, LABELS],
    "targetRef": [TARGET],
    "targetRefs": [[], [TARGET]],
    "issuer": [ISSUER, ""],
    "jwksUri": [f"{ISSUER}/keys", ""],
    "jwks": [KEYS, ""],
    "action": ["ALLOW", "DENY", "AUDIT"],
    "rules": [[], [{}]],
    "values": [[], ["10.0.0.1"]],
    "notValues": [[], ["10.0.0.1"]],
}
_LISTS: Final = [[], ["foo/sleep"]]


def fields_of(rule: Rule) -> list[str]:
    """The fields of its part that a rule looks at."""
    return sorted(set(re.findall(r"self\.(\w+)", rule.expression)))


def every_case(rule: Rule) -> Iterator[dict[str, Any]]:
    """Objects for each place, with each of the rule's fields absent or of each of its values."""
    names = fields_of(rule)
    for kind, path in rule.places:
        for values in itertools.product(*([None, *_FIELDS.get(name, _LISTS)] for name in names)):
            part = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            if path[-2:] == ("when", ITEMS):
                part["key"] = "source.ip"
            whole: Any = part
            for step in reversed(path):
                whole = [whole] if step == ITEMS else {step: whole}
            yield policy_object(kind, whole["spec"])


def corpus() -> Iterator[dict[str, Any]]:
    """Every object of the policy corpus."""
    for _, objects, *_ in ROWS:
        yield from copy.deepcopy(objects)


def definitions(kube: str = "1.32.0") -> dict[str, dict[str, Any]]:
    """The definition of each kind, as the chart renders it for a version of Kubernetes."""
    found = render(kube=kube).all("CustomResourceDefinition")
    return {item["spec"]["names"]["kind"]: item for item in found}


def parts(item: Any, path: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """The parts of an object that a rule at this path is about."""
    if not path:
        yield item
    elif path[0] == ITEMS:
        for one in item:
            yield from parts(one, path[1:])
    elif path[0] in item:
        yield from parts(item[path[0]], path[1:])


# --- objects that a schema accepts -----------------------------------------------------------------

# What the parser accepts in some fields, so that what else is wrong does not hide what is looked for.
_TEXTS: Final = {
    "key": ["source.ip", "request.headers[x-a]", "nonsense"],
    "issuer": [ISSUER, ""],
    "jwksUri": [f"{ISSUER}/keys", "nonsense"],
    "jwks": [KEYS, ""],
    "status": ["True"],
}
_PLAIN: Final = ["a", "foo/sleep", "10.0.0.0/8", "*", ""]
_KEYS: Final = {"matchLabels": ["app", "a.b/c", "not ok"], "portLevelMtls": ["80", "nonsense"]}


def specs(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of a kind whose spec its schema accepts, with everything that may be absent present or not."""
    schema = definitions()[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec = _values("spec", schema["properties"]["spec"])
    return st.one_of(
        spec.map(lambda found: policy_object(kind, found)),
        st.just(policy_object(kind)),
    )


def _values(name: str, schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "additionalProperties" in schema:
        keys = st.sampled_from(_KEYS[name])
        return st.dictionaries(keys, _values("", schema["additionalProperties"]), max_size=2)
    if schema["type"] == "object":
        needed = set(schema.get("required", ()))
        fields = {field: _values(field, child) for field, child in schema["properties"].items()}
        optional = {field: child for field, child in fields.items() if field not in needed}
        if len(optional) > 6:  # few of many, else hardly any two are alone
            chosen = st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True)
            return chosen.flatmap(
                lambda some: st.fixed_dictionaries({field: optional[field] for field in some})
            )
        return st.fixed_dictionaries({field: fields[field] for field in needed}, optional=optional)
    if schema["type"] == "array":
        return st.lists(_values("", schema["items"]), max_size=2)
    if schema["type"] == "boolean":
        return st.booleans()
    texts = _TEXTS.get(name, _PLAIN)
    pattern = schema.get("pattern")
    return st.sampled_from([text for text in texts if not pattern or re.search(pattern, text)])
