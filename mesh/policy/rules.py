"""Mistakes that an API server can refuse by itself: rules in CEL for the definitions of the policy kinds.

One table: the parser says these sentences, and `make docs` writes the chart's `files/crd-rules.yaml` from
it. A rule refuses only what the parser refuses. It uses `rule` and `message` alone, which every server with
CEL rules knows: later fields (`messageExpression` 1.27, `reason` and `fieldPath` 1.28) would be dropped by
older ones, or refused by a client that validates strictly. No rule iterates, so that its cost is known
whatever the object holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.policy.codes import PolicyCode
from mesh.policy.model import AUTHORIZATION_POLICY, PEER_AUTHENTICATION, REQUEST_AUTHENTICATION

ITEMS: Final = "[]"
"""The step of a path that stands for every item of a list."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold of a part of an object.

    Attributes:
        code: of the parser's refusal.
        sentence: what is said when it does not hold, without the code.
        expression: CEL; `self` is the part. Only fields that the schema declares can be seen.
        places: the parts, as kind and path below the object: names of fields, and ITEMS.
    """

    code: PolicyCode
    sentence: str
    expression: str
    places: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def message(self) -> str:
        """The sentence as an API server says it, with the code."""
        return f"{self.sentence} [{self.code}]"


_SPEC: Final = ("spec",)
_RULES: Final = ("spec", "rules", ITEMS)

PORTS_NEED_SELECTOR: Final = Rule(
    PolicyCode.NEEDS_SELECTOR,
    "portLevelMtls needs a selector with matchLabels; ports of all workloads cannot be set",
    "!has(self.portLevelMtls) ||"
    " (has(self.selector) && has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0)",
    ((PEER_AUTHENTICATION, _SPEC),),
)
ONE_TARGET: Final = Rule(
    PolicyCode.CONFLICT,
    "only one of selector, targetRefs and targetRef may be set",
    "!(has(self.targetRefs) && has(self.targetRef)) &&"
    " !(has(self.selector) && (has(self.targetRefs) || has(self.targetRef)))",
    ((REQUEST_AUTHENTICATION, _SPEC), (AUTHORIZATION_POLICY, _SPEC)),
)
ISSUER_OR_KEYS: Final = Rule(
    PolicyCode.MISSING,
    "issuer is missing; a rule needs issuer or jwksUri",
    "has(self.issuer) || has(self.jwksUri)",
    ((REQUEST_AUTHENTICATION, ("spec", "jwtRules", ITEMS)),),
)
ONE_KEY_SET: Final = Rule(
    PolicyCode.CONFLICT,
    "jwks and jwksUri exclude each other; remove one",
    "!(has(self.jwks) && has(self.jwksUri))",
    ((REQUEST_AUTHENTICATION, ("spec", "jwtRules", ITEMS)),),
)
ACTION_NEEDS_RULES: Final = Rule(
    PolicyCode.NEEDS_RULES,
    "a policy with action DENY or AUDIT and no rules does nothing; write `rules: [{}]` to match everything",
    # Not "other than ALLOW": what the schema does not know is not this rule's business.
    "!has(self.action) || !(self.action in ['DENY', 'AUDIT']) || has(self.rules)",
    ((AUTHORIZATION_POLICY, _SPEC),),
)
ONE_FORM_OF_CALLER: Final = Rule(
    PolicyCode.CONFLICT,
    "serviceAccounts excludes principals and namespaces in one source; use a source for each",
    "!(has(self.serviceAccounts) || has(self.notServiceAccounts)) ||"
    " !(has(self.principals) || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces))",
    ((AUTHORIZATION_POLICY, (*_RULES, "from", ITEMS, "source")),),
)
CONDITION_NEEDS_VALUES: Final = Rule(
    PolicyCode.MISSING,
    "values are missing; a condition needs values or notValues",
    "has(self.values) || has(self.notValues)",
    ((AUTHORIZATION_POLICY, (*_RULES, "when", ITEMS)),),
)

RULES: Final = (
    PORTS_NEED_SELECTOR,
    ONE_TARGET,
    ISSUER_OR_KEYS,
    ONE_KEY_SET,
    ACTION_NEEDS_RULES,
    ONE_FORM_OF_CALLER,
    CONDITION_NEEDS_VALUES,
)


def schema_path(place: tuple[str, ...]) -> list[str]:
    """The steps from the schema of an object to the schema of a part."""
    return [step for name in place for step in (["items"] if name == ITEMS else ["properties", name])]


def schema_rules() -> Mapping[str, list[dict[str, Any]]]:
    """What goes into the schemas: for each kind, `at` (steps of the schema) and `rules` to be put there."""
    found: dict[str, dict[tuple[str, ...], list[dict[str, str]]]] = {}
    for rule in RULES:
        for kind, place in rule.places:
            text = {"rule": rule.expression, "message": rule.message}
            found.setdefault(kind, {}).setdefault(place, []).append(text)
    return {
        kind: [{"at": schema_path(place), "rules": rules} for place, rules in sorted(parts.items())]
        for kind, parts in sorted(found.items())
    }
