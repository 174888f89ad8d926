"""AuthorizationPolicy -> rules over predicates, for requests and for bare connections.

A rule is OR(from) AND OR(to) AND AND(when). On a bare connection nothing of a request can be checked:
an ALLOW rule that needs a request is dropped (its policy still counts), a DENY or AUDIT rule loses
those parts and so widens: both fail closed (policy b.3).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mesh.policy import leaves
from mesh.policy.algebra import all_of, any_of, is_identity, mentions_identity, on_plaintext
from mesh.policy.effective import Rule
from mesh.policy.leaves import Leaf, TrustDomains
from mesh.policy.model import (
    Action,
    AuthorizationPolicy,
    AuthzRule,
    ConditionKind,
    Operation,
    Source,
)
from mesh.policy.predicates import NEVER, Predicate


class NoteKind(enum.Enum):
    """What a rule does that matters on some ports only; the resolver knows the ports."""

    TCP_DROPPED = "dropped on TCP"
    TCP_WIDENED = "widened on TCP"
    ALLOWS_PLAINTEXT = "only excludes identities"
    MISSES_PLAINTEXT = "denies by identity"
    NEEDS_IDENTITY = "allows by identity"
    REMOTE_IP = "looks at X-Forwarded-For"
    FOREIGN_PRINCIPAL = "names a trust domain that is not accepted"


@dataclass(frozen=True, slots=True)
class Note:
    """A remark about one field.

    Attributes:
        permission: what the rule asks for without a request; says on which ports it counts.
        detail: the fields or the value concerned.
    """

    kind: NoteKind
    field: str
    permission: Predicate
    detail: str


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """Rules of one policy. Never empty for ALLOW: a rule that never matches stands for no rule."""

    http: tuple[Rule, ...]
    tcp: tuple[Rule, ...]
    notes: tuple[Note, ...] = ()


# Field of Source or Operation, as written in YAML: attribute, meaning of a value, needs a request.
_Fields = dict[str, tuple[str, Leaf, bool]]
_SOURCE: Final[_Fields] = {
    "principals": ("principals", leaves.principal, False),
    "namespaces": ("namespaces", leaves.namespace, False),
    "serviceAccounts": ("service_accounts", leaves.service_account, False),
    "trustDomains": ("trust_domains", leaves.trust_domain, False),
    "ipBlocks": ("ip_blocks", leaves.ip, False),
    "remoteIpBlocks": ("remote_ip_blocks", leaves.remote_ip, False),
    "requestPrincipals": ("request_principals", leaves.request_principal, True),
}
_OPERATION: Final[_Fields] = {
    "ports": ("ports", leaves.port, False),
    "hosts": ("hosts", leaves.host, True),
    "methods": ("methods", leaves.method, True),
    "paths": ("paths", leaves.path, True),
}
_REQUEST_KEYS: Final = frozenset(
    (
        ConditionKind.REQUEST_HEADER,
        ConditionKind.REQUEST_PRINCIPAL,
        ConditionKind.REQUEST_AUDIENCES,
        ConditionKind.REQUEST_PRESENTER,
        ConditionKind.REQUEST_CLAIMS,
    )
)
_PERMISSION_KEYS: Final = frozenset(
    (
        ConditionKind.REQUEST_HEADER,
        ConditionKind.DESTINATION_IP,
        ConditionKind.DESTINATION_PORT,
        ConditionKind.CONNECTION_SNI,
        ConditionKind.ENVOY_FILTER,
    )
)


@dataclass(slots=True)
class _Parts:
    """Both forms of a part of a rule while it is built."""

    http: list[Predicate] = field(default_factory=list)
    tcp: list[Predicate] = field(default_factory=list)

    def add(self, predicates: Iterable[Predicate], *, needs_request: bool) -> None:
        found = list(predicates)
        self.http += found
        if not needs_request:
            self.tcp += found


def negative(name: str) -> str:
    """`notPrincipals` for `principals`."""
    return f"not{name[0].upper()}{name[1:]}"


def compile_policy(policy: AuthorizationPolicy, trust_domains: TrustDomains) -> CompiledPolicy:
    """Compile one policy.

    Args:
        policy: a parsed policy that concerns sidecars.
        trust_domains: the own trust domain and its aliases.
    """
    ref = policy.meta.ref
    http: list[Rule] = []
    tcp: list[Rule] = []
    notes: list[Note] = []
    for index, rule in enumerate(policy.rules):
        key = _key(policy, index)
        compiled = _compile_rule(rule, trust_domains)
        http.append(Rule(key, *compiled.http, ref))
        dropped = policy.action is Action.ALLOW and compiled.request_fields
        if not dropped:
            tcp.append(Rule(key, *compiled.tcp, ref))
        notes += _notes(rule, index, policy.action, compiled, trust_domains)
    if policy.action is Action.ALLOW:
        # No rule would leave logs without the name of the policy that allows nothing (policy c.1).
        http = http or [Rule(_key(policy, 0), NEVER, NEVER, ref)]
        tcp = tcp or [Rule(_key(policy, 0), NEVER, NEVER, ref)]
    return CompiledPolicy(_merged(http), _merged(tcp), tuple(notes))


def _key(policy: AuthorizationPolicy, index: int) -> str:
    return f"ns[{policy.meta.ref.namespace}]-policy[{policy.meta.ref.name}]-rule[{index}]"


@dataclass(frozen=True, slots=True)
class _CompiledRule:
    """Principal and permission in both forms, the fields that need a request, the kinds of callers."""

    http: tuple[Predicate, Predicate]
    tcp: tuple[Predicate, Predicate]
    request_fields: tuple[str, ...]
    callers: tuple[tuple[str, Predicate], ...]


def _compile_rule(rule: AuthzRule, trust_domains: TrustDomains) -> _CompiledRule:
    principal, permission = _Parts(), _Parts()
    request_fields: list[str] = []
    callers: list[tuple[str, Predicate]] = []
    for index, condition in enumerate(rule.conditions):
        side = permission if condition.key.kind in _PERMISSION_KEYS else principal
        needs_request = condition.key.kind in _REQUEST_KEYS
        side.add([leaves.condition(condition, trust_domains)], needs_request=needs_request)
        if needs_request:
            request_fields.append(f"when[{index}]")
    if rule.sources:
        who, fields = _alternatives(rule.sources, _SOURCE, "from[{}].source", trust_domains)
        callers = [
            (f"from[{index}].source", all_of((caller, *principal.http)))
            for index, caller in enumerate(who.http)
        ]
        request_fields = fields + request_fields
        principal.http.insert(0, any_of(who.http))
        principal.tcp.insert(0, any_of(who.tcp))
    else:
        callers = [("when", all_of(principal.http))]
    if rule.operations:
        what, fields = _alternatives(rule.operations, _OPERATION, "to[{}].operation", trust_domains)
        request_fields = fields + request_fields
        permission.http.insert(0, any_of(what.http))
        permission.tcp.insert(0, any_of(what.tcp))
    return _CompiledRule(
        (all_of(principal.http), all_of(permission.http)),
        (all_of(principal.tcp), all_of(permission.tcp)),
        tuple(request_fields),
        tuple(callers),
    )


def _alternatives(
    items: Sequence[Source | Operation], table: _Fields, name: str, trust_domains: TrustDomains
) -> tuple[_Parts, list[str]]:
    """Each source or operation in both forms, and the fields that need a request."""
    alternatives = _Parts()
    request_fields: list[str] = []
    for index, item in enumerate(items):
        one, fields = _attributes(item, table, trust_domains)
        alternatives.http.append(all_of(one.http))
        alternatives.tcp.append(all_of(one.tcp))
        request_fields += [f"{name.format(index)}.{field_name}" for field_name in fields]
    return alternatives, request_fields


def _attributes(
    item: Source | Operation, table: _Fields, trust_domains: TrustDomains
) -> tuple[_Parts, list[str]]:
    """All fields of a source or operation, and the names of those that need a request."""
    parts = _Parts()
    request_fields = []
    for name, (attribute, leaf, needs_request) in table.items():
        wanted, unwanted = getattr(item, attribute), getattr(item, f"not_{attribute}")
        if not wanted and not unwanted:
            continue
        parts.add(leaves.values(leaf, wanted, unwanted, trust_domains), needs_request=needs_request)
        if needs_request:
            request_fields += [name] if wanted else []
            request_fields += [negative(name)] if unwanted else []
    return parts, request_fields


def _merged(rules: list[Rule]) -> tuple[Rule, ...]:
    """Rules that differ in identities only become one, under the first one's key.

    One policy with many identities costs Envoy half of what many policies do.
    """
    merged: list[Rule] = []
    by_permission: dict[Predicate, int] = {}
    for rule in rules:
        at = by_permission.get(rule.permission) if is_identity(rule.principal) else None
        if at is None:
            if is_identity(rule.principal):
                by_permission[rule.permission] = len(merged)
            merged.append(rule)
        else:
            first = merged[at]
            merged[at] = Rule(
                first.key, any_of((first.principal, rule.principal)), first.permission, first.ref
            )
    return tuple(merged)


def _notes(
    rule: AuthzRule, index: int, action: Action, compiled: _CompiledRule, trust_domains: TrustDomains
) -> list[Note]:
    where = f"spec.rules[{index}]"
    permission = compiled.tcp[1]
    notes = []
    if compiled.request_fields:
        kind = NoteKind.TCP_DROPPED if action is Action.ALLOW else NoteKind.TCP_WIDENED
        notes.append(
            Note(
                kind,
                f"{where}.{compiled.request_fields[0]}",
                permission,
                ", ".join(compiled.request_fields[:5]),
            )
        )
    for place, source in enumerate(rule.sources):
        at = f"{where}.from[{place}].source"
        notes += [
            Note(NoteKind.REMOTE_IP, f"{at}.{name}", permission, name)
            for name in ("remoteIpBlocks", negative("remoteIpBlocks"))
            if _source_values(source, name)
        ]
        for name in ("principals", negative("principals")):
            notes += [
                Note(NoteKind.FOREIGN_PRINCIPAL, f"{at}.{name}", permission, value)
                for value in _source_values(source, name)
                if leaves.is_foreign(value, trust_domains)
            ]
    for place, condition in enumerate(rule.conditions):
        at = f"{where}.when[{place}]"
        if condition.key.kind is ConditionKind.REMOTE_IP:
            notes.append(Note(NoteKind.REMOTE_IP, at, permission, condition.key.kind.value))
        if condition.key.kind is ConditionKind.SOURCE_PRINCIPAL:
            notes += [
                Note(NoteKind.FOREIGN_PRINCIPAL, at, permission, value)
                for value in condition.values + condition.not_values
                if leaves.is_foreign(value, trust_domains)
            ]
    for field_name, alternative in compiled.callers:
        notes += _plaintext_note(f"{where}.{field_name}", action, alternative, permission)
    return notes


def _source_values(source: Source, name: str) -> tuple[str, ...]:
    base = name if name in _SOURCE else name[3].lower() + name[4:]
    attribute = _SOURCE[base][0]
    found: tuple[str, ...] = getattr(source, attribute if base == name else f"not_{attribute}")
    return found


def _plaintext_note(where: str, action: Action, alternative: Predicate, permission: Predicate) -> list[Note]:
    """Where a caller without identity is treated otherwise than it seems (ISTIO-SECURITY-2021-004)."""
    if not mentions_identity(alternative):
        return []
    matches = on_plaintext(alternative)
    if action is Action.ALLOW:
        kind = NoteKind.NEEDS_IDENTITY if matches is False else NoteKind.ALLOWS_PLAINTEXT
        return [Note(kind, where, permission, "")]
    if action is Action.DENY and matches is False:
        return [Note(NoteKind.MISSES_PLAINTEXT, where, permission, "")]
    return []
