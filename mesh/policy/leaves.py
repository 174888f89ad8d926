"""Values of access rules -> leaves: what one pattern in one field means (policy b.3, c.3, c.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from mesh.policy.algebra import all_of, any_of, string_match
from mesh.policy.model import Condition, ConditionKey, ConditionKind
from mesh.policy.patterns import is_exact
from mesh.policy.predicates import (
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
from mesh.policy.values import is_namespace, is_object_name, is_template
from mesh.spiffe import SCHEME, TrustDomain

LOCAL: Final = "cluster.local"
"""In a policy: the own trust domain and its aliases, whatever they are called."""
_SEGMENTS: Final = 5  # <trust domain>/ns/<namespace>/sa/<service account>
_PRESENT: Final = StringMatch(MatchKind.PRESENT)

TrustDomains = tuple[TrustDomain, ...]
Leaf = Callable[[str, TrustDomains], Predicate]


def principal(value: str, trust_domains: TrustDomains) -> Predicate:
    """Peer principal; 5-segment ones in a trust domain of ours hold for all of ours."""
    parts = value.split("/")
    if len(parts) != _SEGMENTS:
        return _peer_uri(value)
    domain, rest = parts[0], value[len(parts[0]) :]
    if domain == "*":
        service_account = (parts[1], parts[3]) == ("ns", "sa")
        if service_account and is_namespace(parts[2]) and is_object_name(parts[4]):
            return PeerServiceAccount(parts[2], parts[4])
        return _peer_uri(value)
    names = [td.name for td in trust_domains]
    kept = [name for name in names if domain.startswith("*") and name.endswith(domain[1:])]
    if domain not in {*names, LOCAL} and not kept:
        return _peer_uri(value)
    expanded = [_peer_uri(value)] if kept else []
    expanded += [_peer_uri(name + rest) for name in names if name not in kept]
    return any_of(expanded)


def is_foreign(value: str, trust_domains: TrustDomains) -> bool:
    """True when a principal names a trust domain that TLS never lets in, so that it never matches."""
    domain, slash, _ = value.partition("/")
    names = {td.name for td in trust_domains}
    if not slash or domain.startswith("*") or domain in names:
        return False
    return domain != LOCAL or value.count("/") != _SEGMENTS - 1


def _peer_uri(value: str) -> Predicate:
    match = string_match(value)
    if match.kind in {MatchKind.EXACT, MatchKind.PREFIX}:
        match = StringMatch(match.kind, SCHEME + match.value)
    return PeerUri(match)


def namespace(value: str, _: TrustDomains) -> Predicate:
    """Namespace of the peer."""
    return PeerNamespace(string_match(value))


def service_account(value: str, _: TrustDomains) -> Predicate:
    """`<namespace>/<name>`, completed by the parser."""
    space, _slash, name = value.partition("/")
    return PeerServiceAccount(space, name)


def trust_domain(value: str, trust_domains: TrustDomains) -> Predicate:
    """Trust domain of the peer; `cluster.local` is ours if none of ours has that name."""
    if value == LOCAL and all(td.name != LOCAL for td in trust_domains):
        return any_of(PeerTrustDomain(string_match(td.name)) for td in trust_domains)
    return PeerTrustDomain(string_match(value))


def request_principal(value: str, _: TrustDomains) -> Predicate:
    """`<iss>/<sub>`, split at the last slash: issuers are URLs. Both claims must be there."""
    iss, sub = _issuer_and_subject(value)
    return all_of((Claim(("iss",), iss), Claim(("sub",), sub)))


def _issuer_and_subject(value: str) -> tuple[StringMatch, StringMatch]:
    left, slash, right = value.rpartition("/")
    if value == "*":
        return _PRESENT, _PRESENT
    if value.startswith("*"):  # the end of the principal is given
        if not slash:
            return _PRESENT, string_match(value)
        return string_match(left), string_match(right)
    if is_exact(value):
        return string_match(left), string_match(right)
    # The beginning is given. `https://issuer.exa*` ends before the issuer does.
    if not slash or left.endswith(("/", ":")):
        return string_match(value), _PRESENT
    return StringMatch(MatchKind.EXACT, left), string_match(right)


def _claim(path: tuple[str, ...]) -> Leaf:
    return lambda value, _: Claim(path, string_match(value))


def ip(value: str, _: TrustDomains) -> Predicate:
    """Address of the TCP peer."""
    return DirectSourceIp(value)


def remote_ip(value: str, _: TrustDomains) -> Predicate:
    """Address from X-Forwarded-For."""
    return RemoteIp(value)


def host(value: str, _: TrustDomains) -> Predicate:
    """Host, without regard to case."""
    return Host(string_match(value.lower(), ignore_case=True))


def port(value: str, _: TrustDomains) -> Predicate:
    """Workload port."""
    return DestinationPort(int(value))


def method(value: str, _: TrustDomains) -> Predicate:
    """HTTP method."""
    return Method(string_match(value))


def path(value: str, _: TrustDomains) -> Predicate:
    """Path pattern or template."""
    return PathTemplate(value) if is_template(value) else Path(string_match(value))


def _header(name: str) -> Leaf:
    return lambda value, _: Header(name, string_match(value))


def _metadata(filter_name: str, key: str) -> Leaf:
    def leaf(value: str, _: TrustDomains) -> Predicate:
        # Upstream writes `[x]` for "a list that holds x"; ours always means a text or such a list.
        inner = value[1:-1] if value.startswith("[") and value.endswith("]") and len(value) > 2 else value
        return FilterMetadata(filter_name, (key,), string_match(inner))

    return leaf


_PLAIN_CONDITIONS: Final[dict[ConditionKind, Leaf]] = {
    ConditionKind.SOURCE_IP: ip,
    ConditionKind.REMOTE_IP: remote_ip,
    ConditionKind.SOURCE_NAMESPACE: namespace,
    ConditionKind.SOURCE_PRINCIPAL: principal,
    ConditionKind.SOURCE_SERVICE_ACCOUNT: service_account,
    ConditionKind.SOURCE_TRUST_DOMAIN: trust_domain,
    ConditionKind.REQUEST_PRINCIPAL: request_principal,
    ConditionKind.REQUEST_AUDIENCES: _claim(("aud",)),
    ConditionKind.REQUEST_PRESENTER: _claim(("azp",)),
    ConditionKind.DESTINATION_IP: lambda value, _: DestinationIp(value),
    ConditionKind.DESTINATION_PORT: port,
    ConditionKind.CONNECTION_SNI: lambda value, _: Sni(string_match(value)),
}


def condition_leaf(key: ConditionKey) -> Leaf:
    """How one value of a condition is compared."""
    if key.kind is ConditionKind.REQUEST_HEADER:
        return _header(key.path[0])
    if key.kind is ConditionKind.REQUEST_CLAIMS:
        return _claim(key.path)
    if key.kind is ConditionKind.ENVOY_FILTER:
        return _metadata(key.path[0], key.path[1])
    return _PLAIN_CONDITIONS[key.kind]


def values(
    leaf: Leaf, wanted: Iterable[str], unwanted: Iterable[str], trust_domains: TrustDomains
) -> list[Predicate]:
    """OR(wanted) and NOT(OR(unwanted)); nothing for what is not given."""
    parts = []
    if wanted:
        parts.append(any_of(leaf(value, trust_domains) for value in wanted))
    if unwanted:
        parts.append(Not(any_of(leaf(value, trust_domains) for value in unwanted)))
    return parts


def condition(found: Condition, trust_domains: TrustDomains) -> Predicate:
    """A whole condition."""
    return all_of(values(condition_leaf(found.key), found.values, found.not_values, trust_domains))
