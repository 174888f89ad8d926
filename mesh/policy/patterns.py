"""Checks of the patterns in access rules: what can never match is said, what is dangerous is refused."""

from __future__ import annotations

import re
from typing import Final

from mesh.policy.codes import PolicyCode
from mesh.policy.model import ConditionKey, ConditionKind
from mesh.policy.reader import Node, show
from mesh.policy.values import check_template, is_namespace, is_object_name, is_template, is_token

_PRINCIPAL_SLASHES: Final = 4  # <trust domain>/ns/<namespace>/sa/<service account>
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SPIFFE: Final = "spiffe://"
_BRACKETS = re.compile(r"\[([^\[\]]+)\]")
_INDEXED = re.compile(r"((?:\[[^\[\]]+\])+)")
_FILTER = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_MAX_CLAIM_DEPTH: Final = 8
_PATTERN_HELP: Final = "allowed are abc (exact), abc* (prefix), *abc (suffix) and * (present)"


def core(pattern: str) -> str:
    """A pattern without its wildcard: the text that must occur."""
    if pattern.startswith("*"):
        return pattern[1:]
    return pattern.removesuffix("*")


def is_exact(pattern: str) -> bool:
    """True when a pattern has no wildcard."""
    return not (pattern.startswith("*") or pattern.endswith("*"))


def check_pattern(node: Node, text: str) -> str:
    """Any pattern: a star in the middle is a literal star, which is rarely meant."""
    if "*" in core(text):
        node.warn(
            PolicyCode.LITERAL_STAR,
            f"found {show(text)}: only one star at the start or the end is a wildcard, the other is a"
            f" literal '*'; {_PATTERN_HELP}",
        )
    return text


def _never(node: Node, text: str, reason: str) -> None:
    node.warn(PolicyCode.NEVER_MATCHES, f"found {show(text)}, which never matches: {reason}")


def check_principal(node: Node, text: str) -> str | None:
    """Peer principal: `<trust domain>/ns/<namespace>/sa/<service account>` or a pattern of it."""
    if _SPIFFE in text:
        node.error(
            PolicyCode.BAD_PRINCIPAL,
            f"found {show(text)}; write it without {_SPIFFE}, as in cluster.local/ns/foo/sa/bar",
        )
        return None
    if text.startswith("*/") and text.count("/") > _PRINCIPAL_SLASHES:
        node.error(
            PolicyCode.BAD_PRINCIPAL,
            f"found {show(text)}; a principal is <trust domain>/ns/<namespace>/sa/<service account>,"
            " and here '*' stands for the trust domain only",
        )
        return None
    check_pattern(node, text)
    parts = text.split("/")
    if is_exact(text) and (len(parts) != _PRINCIPAL_SLASHES + 1 or (parts[1], parts[3]) != ("ns", "sa")):
        _never(node, text, "a principal is <trust domain>/ns/<namespace>/sa/<service account>")
    return text


def check_request_principal(node: Node, text: str) -> str | None:
    """Request principal: `<iss>/<sub>`, split at the last slash, or a pattern of it."""
    issuer, _, subject = text.rpartition("/")
    if is_exact(text) and not (issuer and subject):
        node.error(
            PolicyCode.BAD_REQUEST_PRINCIPAL,
            f"found {show(text)}; allowed is <issuer>/<subject>, or <issuer>/* for any subject",
        )
        return None
    return check_pattern(node, text)


def check_namespace(node: Node, text: str) -> str:
    """Namespace of the caller."""
    check_pattern(node, text)
    if is_exact(text) and not is_namespace(text):
        _never(node, text, "a namespace has only a-z 0-9 - and at most 63 characters")
    return text


def check_trust_domain(node: Node, text: str) -> str | None:
    """Trust domain of the caller."""
    if "/" in text:
        node.error(
            PolicyCode.BAD_VALUE, f"found {show(text)}; allowed is the name alone, such as cluster.local"
        )
        return None
    check_pattern(node, text)
    if is_exact(text) and not _TRUST_DOMAIN.fullmatch(text):
        _never(node, text, "a trust domain has only a-z 0-9 . _ - and at most 255 characters")
    return text


def service_account(node: Node, text: str, namespace: str) -> str | None:
    """`[<namespace>/]<name>` without wildcards -> `<namespace>/<name>`."""
    prefix, slash, name = text.rpartition("/")
    if not slash:
        prefix = namespace
    if (slash and not is_namespace(prefix)) or not is_object_name(name):
        node.error(
            PolicyCode.BAD_SERVICE_ACCOUNT,
            f"found {show(text)}, allowed is <name> or <namespace>/<name> without wildcards",
        )
        return None
    return f"{prefix}/{name}"


def check_host(node: Node, text: str) -> str:
    """Host of the request, compared without regard to case."""
    check_pattern(node, text)
    if "/" in text:
        _never(node, text, "a host has no scheme and no path")
    return text


def check_method(node: Node, text: str) -> str:
    """HTTP method; case matters."""
    check_pattern(node, text)
    if text != text.upper():
        _never(
            node, text, f"methods are compared with regard to case; {show(text.upper())} is probably meant"
        )
    return text


def check_path(node: Node, text: str) -> str | None:
    """Path pattern or template, compared with the normalised path without the query."""
    if is_template(text):
        return text if check_template(node, text) else None
    check_pattern(node, text)
    if not text.startswith(("/", "*")):
        _never(node, text, "a path starts with '/'")
    elif "?" in text or "#" in text:
        _never(node, text, "the query and the fragment are not part of the path")
    elif "//" in text or "/./" in text or "/../" in text:
        node.warn(
            PolicyCode.NEVER_MATCHES,
            f"found {show(text)}, which matches nothing unless path normalization is switched off:"
            " '//', '/./' and '/../' are resolved before rules are checked",
        )
    return text


def condition_key(text: str) -> ConditionKey | str:
    """A key of a `when` condition, or why it is none."""
    name, bracket, _ = text.partition("[")
    indexes = tuple(_BRACKETS.findall(text[len(name) :]))
    if bracket and not _INDEXED.fullmatch(text[len(name) :]):
        return "the brackets are not of the form [name]"
    filters = ConditionKind.ENVOY_FILTER.value
    if name.startswith(filters + "."):
        suffix = name[len(filters) + 1 :]
        if not _FILTER.fullmatch(suffix) or len(indexes) != 1:
            return "a filter's name and one [key] are needed"
        # The metadata namespace is the filter's full name.
        return ConditionKey(ConditionKind.ENVOY_FILTER, (f"envoy.filters.{suffix}", *indexes))
    kind = next((kind for kind in ConditionKind if kind.value == name), None)
    if kind is None or kind is ConditionKind.ENVOY_FILTER:
        return "unknown key"
    if kind is ConditionKind.REQUEST_HEADER:
        if len(indexes) != 1:
            return "one [header name] is needed"
        if not is_token(indexes[0]):
            return "this is not a header name; hosts, methods and paths are matched in to.operation"
        return ConditionKey(kind, (indexes[0].lower(),))
    if kind is ConditionKind.REQUEST_CLAIMS:
        if not 1 <= len(indexes) <= _MAX_CLAIM_DEPTH:
            return f"a [claim name] is needed, and at most {_MAX_CLAIM_DEPTH} of them"
        return ConditionKey(kind, indexes)
    return ConditionKey(kind) if not indexes else "this key takes no brackets"
