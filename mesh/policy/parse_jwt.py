"""RequestAuthentication: CRD dict -> model (policy b.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from mesh.policy.codes import PolicyCode
from mesh.policy.effective import JwtHeader
from mesh.policy.jwks import JwksError, parse_key_set
from mesh.policy.model import JwtRule, PolicyMeta, RequestAuthentication
from mesh.policy.oidc import discovery_address
from mesh.policy.reader import Node, show
from mesh.policy.rules import ISSUER_OR_KEYS, ONE_KEY_SET
from mesh.policy.values import blocked_host, header_name, is_token, seconds, url

T = TypeVar("T")

MAX_RULES: Final = 64
MAX_JWKS: Final = 256 * 1024  # characters of an inline key set
_MAX_ITEMS: Final = 64
_MAX_PREFIX: Final = 128
_MAX_TIMEOUT_SECONDS: Final = 60.0
_ALWAYS_SPLIT: Final = ("scope", "permission")  # upstream always splits these two
_FIELDS: Final = (
    "issuer",
    "audiences",
    "jwksUri",
    "jwks",
    "fromHeaders",
    "fromParams",
    "fromCookies",
    "outputPayloadToHeader",
    "outputClaimToHeaders",
    "forwardOriginalToken",
    "timeout",
    "spaceDelimitedClaims",
)


def request_authentication(spec: Node, meta: PolicyMeta) -> RequestAuthentication:
    """Parse `spec`; errors are in the report."""
    fields = spec.fields("selector", "targetRef", "targetRefs", "jwtRules")
    rules: tuple[JwtRule, ...] = ()
    if "jwtRules" in fields:
        rules = tuple(_rule(node) for node in fields["jwtRules"].items(most=MAX_RULES, may_be_empty=True))
    return RequestAuthentication(meta=meta, rules=rules)


def _rule(node: Node) -> JwtRule:
    fields = node.fields(*_FIELDS)
    if isinstance(node.value, Mapping) and "issuer" not in fields and "jwksUri" not in fields:
        node.breaks(ISSUER_OR_KEYS)
    if "jwks" in fields and "jwksUri" in fields:
        fields["jwksUri"].breaks(ONE_KEY_SET)

    def read(field: str, reader: Callable[[Node], T | None], default: T) -> T:
        value = reader(fields[field]) if field in fields else None
        return default if value is None else value

    split: tuple[str, ...] = read("spaceDelimitedClaims", _texts, ())
    reader = Node.text if "jwks" in fields or "jwksUri" in fields else _issuer_alone
    return JwtRule(
        issuer=read("issuer", reader, ""),
        audiences=read("audiences", _texts, ()),
        jwks_uri=read("jwksUri", _jwks_uri, ""),
        jwks=read("jwks", _jwks, ""),
        from_headers=read("fromHeaders", _headers, ()),
        from_params=read("fromParams", _texts, ()),
        from_cookies=read("fromCookies", _cookies, ()),
        output_payload_header=read("outputPayloadToHeader", _output_header, ""),
        claim_headers=read("outputClaimToHeaders", _claim_headers, ()),
        forward=read("forwardOriginalToken", Node.boolean, False),
        timeout_seconds=read("timeout", _timeout, 5.0),
        space_delimited_claims=_ALWAYS_SPLIT + tuple(claim for claim in split if claim not in _ALWAYS_SPLIT),
    )


def _texts(node: Node) -> tuple[str, ...]:
    return tuple(text for _, text in node.texts(most=_MAX_ITEMS))


def _timeout(node: Node) -> float | None:
    return seconds(node, most=_MAX_TIMEOUT_SECONDS)


def _output_header(node: Node) -> str | None:
    return header_name(node, reserved=True)


def _jwks_uri(node: Node) -> str | None:
    address = url(node)
    if address is not None:
        _warn_of_blocked(node, address)
    return address


def _issuer_alone(node: Node) -> str | None:
    """An issuer without jwks and jwksUri: its keys are where it says itself (OIDC discovery)."""
    issuer = node.text()
    if issuer is None:
        return None
    address = discovery_address(issuer)
    if address:
        _warn_of_blocked(node, address)
    else:
        node.warn(
            PolicyCode.JWKS_UNAVAILABLE,
            f"{show(issuer)} is no http:// or https:// address, so its keys cannot be found by it; tokens of"
            " this issuer are refused until the rule has jwksUri or jwks",
        )
    return issuer


def _warn_of_blocked(node: Node, address: str) -> None:
    if blocked_host(address):
        node.warn(
            PolicyCode.JWKS_URI_BLOCKED,
            f"{show(address)} is an address that keys are never fetched from (this host or link-local);"
            " tokens of this issuer are refused until the address names the issuer's real host",
        )


def _jwks(node: Node) -> str | None:
    """An inline key set: refused when nothing in it is usable, canonical otherwise."""
    if not isinstance(node.value, str):
        node.wrong_type("text that holds a JSON key set")
        return None
    if len(node.value) > MAX_JWKS:
        node.error(PolicyCode.TOO_LONG, f"found {len(node.value)} characters, allowed are at most {MAX_JWKS}")
        return None
    try:
        key_set = parse_key_set(node.value)
    except JwksError as error:
        node.error(PolicyCode.BAD_JWKS, error.public)
        return None
    if key_set.had_private:
        node.warn(
            PolicyCode.JWKS_PRIVATE_KEY,
            "the key set holds private or secret members; they were left out, but whoever can read this"
            " object could sign tokens: make new keys and publish only their public half",
        )
    for reason in key_set.dropped:
        node.warn(PolicyCode.JWKS_KEY_DROPPED, f"{reason}; tokens signed with this key are refused")
    return key_set.json


def _headers(node: Node) -> tuple[JwtHeader, ...]:
    found: dict[JwtHeader, None] = {}
    for item in node.items(most=_MAX_ITEMS):
        fields = item.fields("name", "prefix")
        if "name" not in fields:
            item.error(PolicyCode.MISSING, "name is missing; a header to take the token from needs one")
            continue
        name = header_name(fields["name"])
        prefix = fields["prefix"].text(most=_MAX_PREFIX, may_be_empty=True) if "prefix" in fields else ""
        if name is None or prefix is None:
            continue
        header = JwtHeader(name, prefix)
        if header in found:
            item.error(
                PolicyCode.DUPLICATE, f"header {show(name)} with this prefix is listed twice; remove one"
            )
        found[header] = None
    return tuple(found)


def _cookies(node: Node) -> tuple[str, ...]:
    names = []
    for item, text in node.texts(most=_MAX_ITEMS, longest=128):
        if is_token(text):  # RFC 6265 4.1.1: a cookie name is a token
            names.append(text)
        else:
            item.error(PolicyCode.BAD_VALUE, f"found {show(text)}, which cannot be the name of a cookie")
    return tuple(names)


def _claim_headers(node: Node) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for item in node.items(most=_MAX_ITEMS):
        fields = item.fields("header", "claim")
        for name in ("header", "claim"):
            if name not in fields:
                item.error(PolicyCode.MISSING, f"{name} is missing; header and claim are both needed")
        header = header_name(fields["header"], reserved=True) if "header" in fields else None
        claim = fields["claim"].text(most=256) if "claim" in fields else None
        if header is None or claim is None:
            continue
        if header in found:
            item.error(PolicyCode.DUPLICATE, f"header {show(header)} is set twice; remove one")
        found[header] = claim
    return tuple(found.items())
