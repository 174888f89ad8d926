"""Access rules -> Envoy RBAC: one predicate tree becomes one principal and one permission.

Identity is matched by the extension principal `mtls_authenticated` with a URI SAN matcher only. The
older `authenticated.principal_name` also tries DNS names and the subject, so a certificate without
any SPIFFE ID could match.

Exact and prefix matchers stand wherever the meaning allows: the trust domains are known, so that
"namespace x" is a prefix per trust domain, and a regular expression costs three times as much.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, assert_never

from envoy.config.core.v3 import address_pb2, extension_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.rbac.principals.mtls_authenticated.v3 import mtls_authenticated_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2
from envoy.type.matcher.v3 import metadata_pb2, path_pb2, value_pb2

from mesh.envoy import messages as m
from mesh.policy import predicates as p
from mesh.policy.predicates import MatchKind, Predicate, StringMatch
from mesh.spiffe import TrustDomain

JWT_METADATA: Final = "envoy.filters.http.jwt_authn"
JWT_PAYLOAD: Final = "payload"

_TEMPLATE_OPERATORS: Final = {"{*}": "[^/]+", "{**}": ".*"}
_HTTP_ONLY: Final = (p.Claim, p.Path, p.PathTemplate, p.Method, p.Host, p.Header)


def _never_id() -> Any:
    return rbac_pb2.Principal(not_id=rbac_pb2.Principal(any=True))


def _never_rule() -> Any:
    return rbac_pb2.Permission(not_rule=rbac_pb2.Permission(any=True))


def never_policy() -> Any:
    """A policy that matches nothing: what an ALLOW filter needs to deny everything."""
    return rbac_pb2.Policy(permissions=[_never_rule()], principals=[_never_id()])


def policy(
    principal: Predicate, permission: Predicate, trust_domains: tuple[TrustDomain, ...], *, http: bool
) -> Any:
    """One `rbac.v3.Policy`.

    Args:
        principal: who may call.
        permission: what may be asked.
        trust_domains: those that TLS accepts; leaves without a trust domain hold in each.
        http: False for bare connections, where predicates on requests cannot be checked.

    Raises:
        RenderError: for a predicate that does not exist on that side or on that kind of chain.
    """
    who = _Compiler(_PRINCIPAL, trust_domains, http)
    what = _Compiler(_PERMISSION, trust_domains, http)
    # The top level is an OR already: no need for a level of its own.
    principals = principal.parts if isinstance(principal, p.AnyOf) and principal.parts else (principal,)
    permissions = permission.parts if isinstance(permission, p.AnyOf) and permission.parts else (permission,)
    return rbac_pb2.Policy(
        permissions=[what.compile(part) for part in permissions],
        principals=[who.compile(part) for part in principals],
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two message types, which differ in the names of fields and in the leaves they know."""

    make: Callable[..., Any]
    all_of: tuple[str, str]
    any_of: tuple[str, str]
    negate: str


_PRINCIPAL: Final = _Side(rbac_pb2.Principal, ("and_ids", "ids"), ("or_ids", "ids"), "not_id")
_PERMISSION: Final = _Side(rbac_pb2.Permission, ("and_rules", "rules"), ("or_rules", "rules"), "not_rule")


class _Compiler:
    """Compiles predicates for one side."""

    __slots__ = ("_http", "_make", "_side", "_trust_domains")

    def __init__(self, side: _Side, trust_domains: tuple[TrustDomain, ...], http: bool) -> None:
        self._side = side
        self._make = side.make
        self._trust_domains = trust_domains
        self._http = http

    def compile(self, predicate: Predicate) -> Any:
        match predicate:
            case p.Always():
                return self._make(any=True)
            case p.AllOf(parts):
                if not parts:
                    raise m.RenderError(
                        m.RenderCode.PREDICATE, "a conjunction of nothing is ambiguous: use Always"
                    )
                return self._combine(self._side.all_of, [self.compile(part) for part in parts])
            case p.AnyOf(parts):
                return self._either([self.compile(part) for part in parts])
            case p.Not(part):
                return self._make(**{self._side.negate: self.compile(part)})
            case _:
                if not self._http and isinstance(predicate, _HTTP_ONLY):
                    raise m.RenderError(
                        m.RenderCode.PREDICATE,
                        f"{type(predicate).__name__} needs a request; on a TCP port it must have been dropped"
                        " or widened before rendering",
                    )
                return self._leaf(predicate)

    def _combine(self, names: tuple[str, str], parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        field, inner = names
        return self._make(**{field: {inner: parts}})

    def _either(self, parts: list[Any]) -> Any:
        if not parts:
            return self._make(**{self._side.negate: self._make(any=True)})
        return self._combine(self._side.any_of, parts)

    def _leaf(self, leaf: p.Leaf) -> Any:
        match leaf:
            case p.PeerUri() | p.PeerNamespace() | p.PeerServiceAccount() | p.PeerTrustDomain():
                self._only(leaf, _PRINCIPAL)
                return self._either([_san(matcher) for matcher in _identity(leaf, self._trust_domains)])
            case p.DirectSourceIp(cidr):
                self._only(leaf, _PRINCIPAL)
                return self._make(direct_remote_ip=_cidr(cidr))
            case p.RemoteIp(cidr):
                self._only(leaf, _PRINCIPAL)
                return self._make(remote_ip=_cidr(cidr))
            case p.Claim(path, match):
                return self._make(sourced_metadata=_metadata(JWT_METADATA, (JWT_PAYLOAD, *path), match))
            case p.FilterMetadata(name, path, match):
                return self._make(sourced_metadata=_metadata(name, path, match))
            case p.DestinationPort() | p.DestinationIp() | p.Sni():
                self._only(leaf, _PERMISSION)
                return self._destination(leaf)
            case _:
                return self._request(leaf)

    def _request(self, leaf: p.Path | p.PathTemplate | p.Method | p.Host | p.Header) -> Any:
        match leaf:
            case p.Path(match):
                return self._make(url_path=path_pb2.PathMatcher(path=m.string_matcher(match)))
            case p.PathTemplate(template):
                return self._make(url_path=path_pb2.PathMatcher(path=_template(template)))
            case p.Method(match):
                return self._make(header=_header(":method", match))
            case p.Host(match):
                return self._either([self._make(header=header) for header in _hosts(match)])
            case p.Header(name, match):
                return self._make(header=_header(name, match))
            case _:
                assert_never(leaf)

    def _destination(self, leaf: p.DestinationPort | p.DestinationIp | p.Sni) -> Any:
        match leaf:
            case p.DestinationPort(port):
                return self._make(destination_port=port)
            case p.DestinationIp(cidr):
                return self._make(destination_ip=_cidr(cidr))
            case p.Sni(match):
                return self._make(requested_server_name=m.string_matcher(match))
            case _:
                assert_never(leaf)

    def _only(self, leaf: p.Leaf, side: _Side) -> None:
        if self._side is not side:
            name = "principal" if side is _PRINCIPAL else "permission"
            raise m.RenderError(m.RenderCode.PREDICATE, f"{type(leaf).__name__} can only be a {name}")


def _identity(
    leaf: p.PeerUri | p.PeerNamespace | p.PeerServiceAccount | p.PeerTrustDomain,
    trust_domains: tuple[TrustDomain, ...],
) -> list[Any]:
    """URI matchers, any of which may hold; none = the leaf is never true."""
    match leaf:
        case p.PeerUri(match):
            return [_uri(match)]
        case p.PeerServiceAccount(namespace, name):
            return [m.exact(f"{m.SPIFFE_PREFIX}{td.name}/ns/{namespace}/sa/{name}") for td in trust_domains]
        case p.PeerTrustDomain(match):
            # TLS lets no other trust domain in: the comparison can be made here and now.
            accepted = [td for td in trust_domains if _compare(match, td.name)]
            return [m.prefix(f"{m.SPIFFE_PREFIX}{td.name}/") for td in accepted]
        case p.PeerNamespace(match):
            return _namespaces(match, trust_domains)
        case _:
            assert_never(leaf)


def _uri(match: StringMatch) -> Any:
    if match.kind is MatchKind.PRESENT or (match.kind is not MatchKind.EXACT and not match.value):
        return m.prefix(m.SPIFFE_PREFIX)
    if match.kind is MatchKind.SUFFIX:
        # A suffix alone would also match a URI name of another scheme.
        return m.safe_regex(f"{m.SPIFFE_PREFIX}.*{m.quoted(match.value)}")
    return m.string_matcher(match)


def _namespaces(match: StringMatch, trust_domains: tuple[TrustDomain, ...]) -> list[Any]:
    value = match.value
    if "/" in value:  # no namespace has one; unescaped it would reach into the rest of the URI
        return []
    roots = [f"{m.SPIFFE_PREFIX}{td.name}/ns/" for td in trust_domains]
    match match.kind:
        case MatchKind.EXACT:
            return [m.prefix(f"{root}{value}/") for root in roots]
        case MatchKind.PREFIX:
            return [m.prefix(f"{root}{value}") for root in roots]
        case MatchKind.SUFFIX:
            return [m.safe_regex(f"{m.quoted(root)}[^/]*{m.quoted(value)}/.*") for root in roots]
        case MatchKind.PRESENT:
            return [m.prefix(root) for root in roots]


def _compare(match: StringMatch, text: str) -> bool:
    match match.kind:
        case MatchKind.EXACT:
            return text == match.value
        case MatchKind.PREFIX:
            return text.startswith(match.value)
        case MatchKind.SUFFIX:
            return text.endswith(match.value)
        case MatchKind.PRESENT:
            return True


def _san(matcher: Any) -> Any:
    config = mtls_authenticated_pb2.Config(
        san_matcher=common_pb2.SubjectAltNameMatcher(
            san_type=common_pb2.SubjectAltNameMatcher.URI, matcher=matcher
        )
    )
    return rbac_pb2.Principal(
        custom=extension_pb2.TypedExtensionConfig(
            name="envoy.rbac.principals.mtls_authenticated", typed_config=m.pack(config)
        )
    )


def _cidr(text: str) -> Any:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise m.RenderError(m.RenderCode.PREDICATE, f"{text[:80]!r} is not an address block") from error
    return address_pb2.CidrRange(
        address_prefix=str(network.network_address), prefix_len=m.uint32(network.prefixlen)
    )


def _metadata(name: str, path: tuple[str, ...], match: StringMatch) -> Any:
    """A string, or a list that holds such a string; a number or a boolean never matches."""
    text = value_pb2.ValueMatcher(string_match=m.string_matcher(match))
    either = value_pb2.OrMatcher(
        value_matchers=[value_pb2.ValueMatcher(list_match=value_pb2.ListMatcher(one_of=text)), text]
    )
    return rbac_pb2.SourcedMetadata(
        metadata_matcher=metadata_pb2.MetadataMatcher(
            filter=name,
            path=[metadata_pb2.MetadataMatcher.PathSegment(key=key) for key in path],
            value=value_pb2.ValueMatcher(or_match=either),
        )
    )


def _template(template: str) -> Any:
    """A path template as a regular expression: `{*}` is one segment, `{**}` any number of them.

    Not Envoy's own `uri_template`: it does not match segments with `[` or `]`, so that a DENY could be
    dodged by `/admin/[`, and it *aborts* the process on a template that it cannot parse.
    """
    body = [_TEMPLATE_OPERATORS.get(text) or m.quoted(text) for text in template.split("/")]
    operators = [text for text in template.split("/") if text in _TEMPLATE_OPERATORS]
    braces = "{" in "".join(text for text in template.split("/") if text not in _TEMPLATE_OPERATORS)
    if not template.startswith("/") or braces or "{**}" in operators[:-1]:
        raise m.RenderError(
            m.RenderCode.PREDICATE,
            f"path template {template[:80]!r}: it must start with '/', and {{*}} and, as the last operator,"
            " {**} are whole segments",
        )
    return m.safe_regex("/".join(body))


def _header(name: str, match: StringMatch) -> Any:
    if match.kind is MatchKind.PRESENT:
        return route_components_pb2.HeaderMatcher(name=name, present_match=True)
    return route_components_pb2.HeaderMatcher(name=name, string_match=m.string_matcher(match))


def _authority(matcher: Any) -> Any:
    return route_components_pb2.HeaderMatcher(name=":authority", string_match=matcher)


def _hosts(match: StringMatch) -> list[Any]:
    """Host headers that mean the host: any case, with a port, with the root's dot.

    A client chooses among `h`, `H`, `h:80` and `h.`, so a rule on one has to hold for all.
    """
    value = match.value
    has_port = ":" in value.rpartition("]")[2]
    if match.kind is MatchKind.PRESENT or (match.kind is not MatchKind.EXACT and not value):
        return [route_components_pb2.HeaderMatcher(name=":authority", present_match=True)]
    if match.kind is MatchKind.PREFIX or has_port:
        return [_authority(m.string_matcher(StringMatch(match.kind, value, ignore_case=True)))]
    if match.kind is MatchKind.SUFFIX:
        return [_authority(m.safe_regex(rf"(?is).*{m.quoted(value)}\.?(:[0-9]*)?"))]
    dotless = value.removesuffix(".")
    return [
        _authority(m.string_matcher(StringMatch(kind, text, ignore_case=True)))
        for kind, text in (
            (MatchKind.EXACT, dotless),
            (MatchKind.PREFIX, f"{dotless}:"),
            (MatchKind.EXACT, f"{dotless}."),
            (MatchKind.PREFIX, f"{dotless}.:"),
        )
    ]
