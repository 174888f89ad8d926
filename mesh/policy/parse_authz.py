"""AuthorizationPolicy: CRD dict -> model (policy b.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh.policy.codes import PolicyCode
from mesh.policy.model import (
    Action,
    AuthorizationPolicy,
    AuthzRule,
    Condition,
    ConditionKey,
    ConditionKind,
    Operation,
    PolicyMeta,
    Source,
)
from mesh.policy.patterns import (
    check_host,
    check_method,
    check_namespace,
    check_path,
    check_pattern,
    check_principal,
    check_request_principal,
    check_trust_domain,
    condition_key,
    service_account,
)
from mesh.policy.reader import Node, nearest, show
from mesh.policy.rules import ACTION_NEEDS_RULES, CONDITION_NEEDS_VALUES, ONE_FORM_OF_CALLER
from mesh.policy.values import cidr, port_number

MAX_RULES: Final = 512
MAX_ITEMS: Final = 512  # sources, operations or conditions of one rule
MAX_VALUES: Final = 4096  # values of one field
MAX_SERVICE_ACCOUNTS: Final = 16
MAX_TOTAL_VALUES: Final = 20_000

_ACTIONS: Final = {action.value: action for action in Action}
_CUSTOM: Final = "CUSTOM"
Check = Callable[[Node, str], str | None]


def _port(node: Node, text: str) -> str | None:
    number = port_number(node, text)
    return None if number is None else str(number)


_OPERATION: Final[dict[str, tuple[str, Check]]] = {
    "hosts": ("hosts", check_host),
    "ports": ("ports", _port),
    "methods": ("methods", check_method),
    "paths": ("paths", check_path),
}
# serviceAccounts needs the policy's namespace and is added where that is known.
_SOURCE: Final[dict[str, tuple[str, Check]]] = {
    "principals": ("principals", check_principal),
    "requestPrincipals": ("request_principals", check_request_principal),
    "namespaces": ("namespaces", check_namespace),
    "trustDomains": ("trust_domains", check_trust_domain),
    "ipBlocks": ("ip_blocks", cidr),
    "remoteIpBlocks": ("remote_ip_blocks", cidr),
}
_CONDITION: Final[dict[ConditionKind, Check]] = {
    ConditionKind.REQUEST_HEADER: check_pattern,
    ConditionKind.SOURCE_IP: cidr,
    ConditionKind.REMOTE_IP: cidr,
    ConditionKind.SOURCE_NAMESPACE: check_namespace,
    ConditionKind.SOURCE_PRINCIPAL: check_principal,
    ConditionKind.SOURCE_TRUST_DOMAIN: check_trust_domain,
    ConditionKind.REQUEST_PRINCIPAL: check_request_principal,
    ConditionKind.REQUEST_AUDIENCES: check_pattern,
    ConditionKind.REQUEST_PRESENTER: check_pattern,
    ConditionKind.REQUEST_CLAIMS: check_pattern,
    ConditionKind.DESTINATION_IP: cidr,
    ConditionKind.DESTINATION_PORT: _port,
    ConditionKind.CONNECTION_SNI: check_pattern,
    ConditionKind.ENVOY_FILTER: check_pattern,
}
_NUMERIC_CLAIMS: Final = frozenset({"exp", "iat", "nbf", "auth_time"})


def authorization_policy(spec: Node, meta: PolicyMeta, *, dry_run: bool) -> AuthorizationPolicy:
    """Parse `spec`; errors are in the report."""
    fields = spec.fields("selector", "targetRef", "targetRefs", "action", "rules", "provider")
    action = _action(fields["action"]) if "action" in fields else Action.ALLOW
    if "provider" in fields and not (
        "action" in fields and fields["action"].value == _CUSTOM  # then one refusal says it all
    ):
        fields["provider"].error(
            PolicyCode.CONFLICT, "provider belongs to action CUSTOM, which is not supported; remove it"
        )
    rules: tuple[AuthzRule, ...] = ()
    if "rules" in fields:
        nodes = fields["rules"].items(most=MAX_RULES, may_be_empty=action is Action.ALLOW)
        reader = _RuleReader(meta.ref.namespace)
        rules = tuple(reader.rule(node) for node in nodes)
        if reader.values > MAX_TOTAL_VALUES:
            fields["rules"].error(
                PolicyCode.TOO_MANY,
                f"found {reader.values} values in all rules, allowed are at most {MAX_TOTAL_VALUES};"
                " split the policy",
            )
    elif action is not Action.ALLOW:
        spec.breaks(ACTION_NEEDS_RULES)
    if dry_run and action is Action.AUDIT:
        spec.error(PolicyCode.UNSUPPORTED, "action AUDIT decides nothing; remove the dry-run annotation")
    return AuthorizationPolicy(meta=meta, action=action, rules=rules, dry_run=dry_run)


def _action(node: Node) -> Action:
    if node.value == _CUSTOM:
        node.error(
            PolicyCode.UNSUPPORTED,
            "action CUSTOM is not supported: there are no external authorization providers;"
            " use ALLOW, DENY or AUDIT",
        )
        return Action.ALLOW
    return node.choice(_ACTIONS) or Action.ALLOW


class _RuleReader:
    """Reads the rules of one policy and counts their values."""

    def __init__(self, namespace: str) -> None:
        self.values = 0
        self._namespace = namespace
        self._source = _SOURCE | {"serviceAccounts": ("service_accounts", self._service_account)}

    def rule(self, node: Node) -> AuthzRule:
        """`from`, `to` and `when`; a rule without any matches everything."""
        fields = node.fields("from", "to", "when")
        sources = [
            self._source_of(found)
            for item in (fields["from"].items(most=MAX_ITEMS) if "from" in fields else [])
            if (found := self._inner(item, "source")) is not None
        ]
        operations = [
            Operation(**self._attributes(found, _OPERATION))
            for item in (fields["to"].items(most=MAX_ITEMS) if "to" in fields else [])
            if (found := self._inner(item, "operation")) is not None
        ]
        conditions = [
            self._condition(item)
            for item in (fields["when"].items(most=MAX_ITEMS) if "when" in fields else [])
        ]
        return AuthzRule(tuple(sources), tuple(operations), tuple(c for c in conditions if c is not None))

    def _inner(self, item: Node, name: str) -> Node | None:
        """The `source` of a `from` item, the `operation` of a `to` item."""
        inner = item.fields(name).get(name)
        if inner is None:
            if item.value == {}:
                item.error(PolicyCode.AMBIGUOUS, f"{name} is missing; say what it matches or remove the item")
            return None
        if inner.value == {}:
            inner.error(
                PolicyCode.AMBIGUOUS,
                f"an empty {name} could mean everything or nothing; to match everything remove the"
                " whole list, else name at least one field",
            )
            return None
        return inner

    def _attributes(self, node: Node, table: dict[str, tuple[str, Check]]) -> dict[str, tuple[str, ...]]:
        """Every field of a source or operation, with its negative."""
        known: dict[str, tuple[str, Check]] = {}
        for field, (name, check) in table.items():
            known[field] = (name, check)
            known[f"not{field[0].upper()}{field[1:]}"] = (f"not_{name}", check)
        found: dict[str, tuple[str, ...]] = {}
        for field, child in node.fields(*known).items():
            name, check = known[field]
            most = MAX_SERVICE_ACCOUNTS if field.endswith("erviceAccounts") else MAX_VALUES
            found[name] = self._checked(child, check, most)
        return found

    def _checked(self, node: Node, check: Check, most: int = MAX_VALUES) -> tuple[str, ...]:
        pairs = node.texts(most=most)
        self.values += len(pairs)
        checked = [check(item, text) for item, text in pairs]
        # Two spellings of one CIDR block or service account are one value.
        return tuple(dict.fromkeys(value for value in checked if value is not None))

    def _service_account(self, node: Node, text: str) -> str | None:
        return service_account(node, text, self._namespace)

    def _source_of(self, node: Node) -> Source:
        found = self._attributes(node, self._source)
        accounts = {"service_accounts", "not_service_accounts"} & found.keys()
        others = {"principals", "not_principals", "namespaces", "not_namespaces"} & found.keys()
        if accounts and others:
            node.breaks(ONE_FORM_OF_CALLER)
        return Source(**found)

    def _condition(self, node: Node) -> Condition | None:
        fields = node.fields("key", "values", "notValues")
        if not isinstance(node.value, dict):
            return None
        key: ConditionKey | None = None
        if "key" not in fields:
            node.error(PolicyCode.MISSING, "key is missing; an example is request.headers[x-name]")
        else:
            key = _key(fields["key"])
        if "values" not in fields and "notValues" not in fields:
            node.breaks(CONDITION_NEEDS_VALUES)
        if key is None:
            return None
        check = (
            self._service_account
            if key.kind is ConditionKind.SOURCE_SERVICE_ACCOUNT
            else _CONDITION[key.kind]
        )
        _warn_about_claim(fields["key"], key)
        return Condition(
            key,
            self._checked(fields["values"], check) if "values" in fields else (),
            self._checked(fields["notValues"], check) if "notValues" in fields else (),
        )


def _key(node: Node) -> ConditionKey | None:
    text = node.text(most=512)
    if text is None:
        return None
    key = condition_key(text)
    if isinstance(key, ConditionKey):
        return key
    forms = _forms()
    node.error(
        PolicyCode.BAD_CONDITION_KEY,
        f"found {show(text)}: {key}; allowed are {', '.join(forms)}{nearest(text.partition('[')[0], forms)}",
    )
    return None


def _forms() -> list[str]:
    brackets = {
        ConditionKind.REQUEST_HEADER: "[name]",
        ConditionKind.REQUEST_CLAIMS: "[name]",
        ConditionKind.ENVOY_FILTER: ".<filter>[key]",
    }
    return [kind.value + brackets.get(kind, "") for kind in ConditionKind]


def _warn_about_claim(node: Node, key: ConditionKey) -> None:
    if key.kind is ConditionKind.REQUEST_CLAIMS and key.path[0] in _NUMERIC_CLAIMS and len(key.path) == 1:
        node.warn(
            PolicyCode.CLAIM_NEVER_MATCHES,
            f"claim {show(key.path[0])} is a number, and only texts and lists of texts are compared: values"
            " never match (expiry is checked in any case)",
        )
