"""Checks of single values that several kinds use. Each notes what is wrong and returns None."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from mesh.policy.codes import PolicyCode
from mesh.policy.reader import Node, show

MAX_PORT: Final = 65535
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # RFC 9110 5.1: token
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_DNS = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
_LABEL_KEY = re.compile(rf"({_DNS}/)?{_LABEL_NAME}")
_LABEL_VALUE = re.compile(rf"({_LABEL_NAME})?")
_OBJECT_NAME = re.compile(_DNS)
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
# What Envoy's URI template matcher takes as a literal; anything else would refuse the resource.
_TEMPLATE_LITERAL = re.compile(r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]*")
_MAX_TEMPLATE_OPERATORS: Final = 5
_MAX_HOST: Final = 253


def is_namespace(text: str) -> bool:
    """True for a legal Kubernetes namespace name."""
    return _NAMESPACE.fullmatch(text) is not None


def is_object_name(text: str) -> bool:
    """True for a legal Kubernetes object name (RFC 1123 subdomain)."""
    return len(text) <= _MAX_HOST and _OBJECT_NAME.fullmatch(text) is not None


def is_token(text: str) -> bool:
    """True for a token of HTTP (RFC 9110 5.6.2) of at most 128 characters."""
    return _TOKEN.fullmatch(text) is not None


def check_label(node: Node, key: str, value: str) -> bool:
    """Whether a label of a selector can exist."""
    if len(key) > _MAX_HOST + 64 or not _LABEL_KEY.fullmatch(key):
        node.error(PolicyCode.BAD_VALUE, f"{show(key)} is not a legal label key")
        return False
    if not _LABEL_VALUE.fullmatch(value):
        star = "; wildcards are not supported in labels" if "*" in value else ""
        node.error(PolicyCode.BAD_VALUE, f"{show(value)} is not a legal label value{star}")
        return False
    return True


def port_number(node: Node, text: str) -> int | None:
    """A decimal port number 1 to 65535."""
    if not _PORT.fullmatch(text) or int(text) > MAX_PORT:
        node.error(PolicyCode.BAD_PORT, f"found {show(text)}, allowed is a port number from 1 to {MAX_PORT}")
        return None
    return int(text)


def cidr(node: Node, text: str) -> str | None:
    """An address or CIDR block, in canonical form and always with a prefix length."""
    try:
        # A zone (fe80::1%eth0) means something on one host only.
        network = None if "%" in text else ipaddress.ip_network(text, strict=False)
    except ValueError:
        network = None
    address, slash, length = text.partition("/")
    if network is None or not address or (slash and not length.isdecimal()):
        node.error(
            PolicyCode.BAD_CIDR,
            f"found {show(text)}, allowed is an IP address or a CIDR block such as 10.1.0.0/16"
            " or 2001:db8::/32; wildcards and names are not",
        )
        return None
    return str(network)


def header_name(node: Node, *, reserved: bool = False) -> str | None:
    """A header name, in lower case.

    Args:
        node: where the name is.
        reserved: also refuse headers that proxies themselves set or that frame the message.
    """
    text = node.text(most=256)
    if text is None:
        return None
    if not is_token(text):
        node.error(
            PolicyCode.BAD_HEADER_NAME,
            f"found {show(text)}, allowed are letters, digits and !#$%&'*+-.^_`|~ (at most 128;"
            " no ':' and no spaces)",
        )
        return None
    name = text.lower()
    if reserved and (name in _RESERVED_HEADERS or name.startswith(_RESERVED_PREFIXES)):
        node.error(
            PolicyCode.BAD_HEADER_NAME,
            f"{show(text)} is set by the proxy or frames the message; choose another name, such as"
            " x-jwt-payload",
        )
        return None
    return name


_RESERVED_PREFIXES: Final = ("x-envoy-", "x-forwarded-")
_RESERVED_HEADERS: Final = frozenset(
    ("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade")
)


def url(node: Node) -> str | None:
    """An absolute http or https URL without credentials and fragment."""
    text = node.text()
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.username or parts.password or parts.fragment)
            and not re.search(r"[\s\\]", text)
        )
    except ValueError:
        good = False
    if not good:
        node.error(
            PolicyCode.BAD_URL,
            f"found {show(text)}, allowed is http:// or https:// with a host and no user, password"
            " or fragment",
        )
        return None
    return text


def blocked_host(address_url: str) -> bool:
    """True when the host of a checked URL is an address literal that is never fetched from (SSRF)."""
    host = urlsplit(address_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address.is_reserved
    )


def seconds(node: Node, *, most: float) -> float | None:
    """A duration such as `5s` or `1m30s`, greater than zero and at most `most` seconds."""
    text = node.text(most=64)
    if text is None:
        return None
    total = 0.0
    if _DURATION.fullmatch(text):
        total = sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    if not 0 < total <= most:
        node.error(
            PolicyCode.BAD_VALUE,
            f"found {show(text)}, allowed is a duration such as 5s or 1m30s, at most {most:g}s",
        )
        return None
    return total


def is_template(path: str) -> bool:
    """True when a path is a template rather than a pattern."""
    return "{" in path or "}" in path


def check_template(node: Node, path: str) -> bool:
    """Whether a path template can be given to Envoy and means what it looks like."""
    reason = _template_fault(path)
    if reason:
        node.error(
            PolicyCode.BAD_TEMPLATE,
            f"found {show(path)}: {reason}; a template has whole segments {{*}} (one segment) or, as the last"
            " operator, {**} (any rest), as in /api/{*}/items/{**}",
        )
    return not reason


def _template_fault(path: str) -> str:
    if not path.startswith("/"):
        return "it must start with '/'"
    operators = 0
    rest_seen = False
    segments = path[1:].split("/")
    for index, segment in enumerate(segments):
        if not segment and index < len(segments) - 1:
            return "it has an empty segment"
        if segment in {"{*}", "{**}"}:
            if rest_seen:
                return "{**} must be the last operator"
            operators += 1
            rest_seen = segment == "{**}"
        elif "{" in segment or "}" in segment:
            return f"{show(segment)} is not a whole {{*}} or {{**}} segment"
        elif "*" in segment:
            return "templates and '*' wildcards cannot be mixed"
        elif not _TEMPLATE_LITERAL.fullmatch(segment):
            return f"{show(segment)} has a character that a template cannot hold"
    if operators > _MAX_TEMPLATE_OPERATORS:
        return f"it has {operators} operators, allowed are at most {_MAX_TEMPLATE_OPERATORS}"
    return ""
