"""A reference evaluator: what an EffectivePolicy answers to a request, in plain Python.

Slow and literal on purpose, and independent of `mesh.envoy`: the meaning of each predicate is written
here once more, to be compared with a real Envoy.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.policy.effective import EffectivePolicy, JwtProvider, MtlsMode, Rule, RuleSets
from mesh.policy.predicates import (
    AllOf,
    Always,
    AnyOf,
    Claim,
    DestinationIp,
    DestinationPort,
    DirectSourceIp,
    FilterMetadata,
    Header,
    Host,
    MatchKind,
    Method,
    Not,
    Path,
    PathTemplate,
    PeerNamespace,
    PeerServiceAccount,
    PeerTrustDomain,
    PeerUri,
    Predicate,
    RemoteIp,
    Sni,
    StringMatch,
)


@dataclass(frozen=True, kw_only=True)
class Token:
    """A bearer token as far as policy sees it; `good` = signature, time and form are right."""

    claims: Mapping[str, Any]
    good: bool = True


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request, or with `http=False` a bare connection.

    `peer` is the URI of a verified certificate, or None on plaintext. `path` has no query. `token` stands
    where every provider looks for it.
    """

    peer: str | None = None
    port: int = 8080
    http: bool = True
    method: str = "GET"
    path: str = "/"
    host: str = "httpbin.foo"
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    token: Token | None = None
    source_ip: str = "10.1.0.1"
    remote_ip: str = "10.1.0.1"
    destination_ip: str = "10.2.0.2"
    sni: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Answer(enum.Enum):
    """What the caller sees."""

    OK = "ok"
    RESET = "reset"  # no filter chain for it
    UNAUTHENTICATED = "401"
    FORBIDDEN = "403"  # on a connection: closed


@dataclass(frozen=True)
class Verdict:
    """The answer, who gave it, and what was only logged."""

    answer: Answer
    rule: str = ""
    audited: tuple[str, ...] = ()
    would_deny: str = ""


def evaluate(policy: EffectivePolicy, call: Call) -> Verdict:
    """The verdict over one call."""
    mode = policy.transport.for_port(call.port)
    if mode is MtlsMode.STRICT and call.peer is None:
        return Verdict(Answer.RESET, "transport")
    if mode is MtlsMode.DISABLE and call.peer is not None:
        return Verdict(Answer.RESET, "transport")
    claims: Mapping[str, Any] | None = None
    if call.http:
        answer, claims = _token(policy, call)
        if answer is not Answer.OK:
            return Verdict(answer, "jwt")
    return _access(policy.authz.http if call.http else policy.authz.tcp, call, claims)


def _token(policy: EffectivePolicy, call: Call) -> tuple[Answer, Mapping[str, Any] | None]:
    if not policy.jwt.regions or call.token is None:
        return Answer.OK, None
    (region,) = policy.jwt.regions
    assert region.allow_missing
    assert not region.allow_failed
    assert not region.paths
    providers = [p for p in policy.jwt.providers if p.key in region.providers]
    answers = [_provider(provider, call.token) for provider in providers]
    if Answer.OK in answers:
        return Answer.OK, _split(call.token.claims, providers[answers.index(Answer.OK)])
    return (Answer.FORBIDDEN if Answer.FORBIDDEN in answers else Answer.UNAUTHENTICATED), None


def _provider(provider: JwtProvider, token: Token) -> Answer:
    if provider.issuer and token.claims.get("iss") != provider.issuer:
        return Answer.UNAUTHENTICATED
    audiences = token.claims.get("aud", [])
    audiences = [audiences] if isinstance(audiences, str) else audiences
    if provider.audiences and not set(provider.audiences) & set(audiences):
        return Answer.FORBIDDEN
    return Answer.OK if token.good else Answer.UNAUTHENTICATED


def _split(claims: Mapping[str, Any], provider: JwtProvider) -> Mapping[str, Any]:
    return {
        name: value.split(" ")
        if name in provider.space_delimited_claims and isinstance(value, str)
        else value
        for name, value in claims.items()
    }


def _access(rules: RuleSets, call: Call, claims: Mapping[str, Any] | None) -> Verdict:
    def first(candidates: tuple[Rule, ...]) -> str:
        found = (
            r.key
            for r in candidates
            if holds(r.principal, call, claims) and holds(r.permission, call, claims)
        )
        return next(found, "")

    audited = tuple(
        r.key for r in rules.audit if holds(r.principal, call, claims) and holds(r.permission, call, claims)
    )
    shadow = first(rules.dry_run_deny)
    denied = first(rules.deny)
    if denied:
        return Verdict(Answer.FORBIDDEN, denied, audited, shadow)
    allowed = first(rules.allow or ())
    if rules.allow is not None and not allowed:
        return Verdict(Answer.FORBIDDEN, "", audited, shadow)
    return Verdict(Answer.OK, allowed, audited, shadow)


def holds(predicate: Predicate, call: Call, claims: Mapping[str, Any] | None = None) -> bool:
    """Whether a predicate is true of a call."""
    match predicate:
        case Always():
            return True
        case AllOf(parts):
            assert parts, "an empty AllOf is not allowed"
            return all(holds(part, call, claims) for part in parts)
        case AnyOf(parts):
            return any(holds(part, call, claims) for part in parts)
        case Not(part):
            return not holds(part, call, claims)
        case PeerUri() | PeerNamespace() | PeerServiceAccount() | PeerTrustDomain():
            return call.peer is not None and _identity(predicate, call.peer)
        case Claim() | Path() | PathTemplate() | Method() | Host() | Header():
            assert call.http, f"{predicate} needs a request"
            return _request(predicate, call, claims)
        case _:
            return _connection(predicate, call)


def _connection(predicate: Predicate, call: Call) -> bool:
    match predicate:
        case DirectSourceIp(cidr):
            return _within(call.source_ip, cidr)
        case RemoteIp(cidr):
            return _within(call.remote_ip if call.http else call.source_ip, cidr)
        case DestinationPort(port):
            return call.port == port
        case DestinationIp(cidr):
            return _within(call.destination_ip, cidr)
        case Sni(match):
            return compare(match, call.sni)
        case FilterMetadata(name, path, match):
            return _claim(call.metadata.get(name), path, match)
        case _:
            raise AssertionError(predicate)


def _request(predicate: Predicate, call: Call, claims: Mapping[str, Any] | None) -> bool:
    match predicate:
        case Claim(path, match):
            return _claim(claims, path, match)
        case Path(match):
            return compare(match, call.path)
        case PathTemplate(template):
            return _template(template).fullmatch(call.path) is not None
        case Method(match):
            return compare(match, call.method)
        case Host(match):
            name = re.sub(r":[0-9]+$", "", call.host)
            return compare(match, call.host) or compare(match, name)
        case Header(name, match):
            return any(compare(match, value) for value in call.headers.get(name, ()))
        case _:
            raise AssertionError(predicate)


def _identity(leaf: PeerUri | PeerNamespace | PeerServiceAccount | PeerTrustDomain, uri: str) -> bool:
    domain, _, path = uri.removeprefix("spiffe://").partition("/")
    parts = path.split("/")
    match leaf:
        case PeerUri(match):
            return compare(match, uri)
        case PeerNamespace(match):
            return parts[0] == "ns" and compare(match, parts[1])
        case PeerServiceAccount(namespace, name):
            return parts == ["ns", namespace, "sa", name]
        case PeerTrustDomain(match):
            return compare(match, domain)


def compare(match: StringMatch, text: str) -> bool:
    """One string against one matcher."""
    value = match.value
    if match.ignore_case:
        value, text = value.lower(), text.lower()
    match match.kind:
        case MatchKind.EXACT:
            return text == value
        case MatchKind.PREFIX:
            return text.startswith(value)
        case MatchKind.SUFFIX:
            return text.endswith(value)
        case MatchKind.PRESENT:
            return text != ""


def _claim(value: Any, path: tuple[str, ...], match: StringMatch) -> bool:
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    values = value if isinstance(value, list) else [value]
    return any(isinstance(item, str) and compare(match, item) for item in values)


def _within(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def _template(template: str) -> re.Pattern[str]:
    # Envoy: {*} is one segment, not empty; {**} is any rest, which may be empty.
    quoted = re.escape(template)
    return re.compile(quoted.replace(re.escape("{**}"), ".*").replace(re.escape("{*}"), "[^/]+"))
