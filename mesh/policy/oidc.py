"""Where an issuer says that its keys are: OpenID Connect Discovery 1.0.

A rule that gives an issuer and no keys means: ask the issuer. Where to ask follows from the name alone, so
a key set that was found this way is known by that address, as others are by their `jwksUri`. Nothing
here fetches.
"""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import urlsplit

from mesh.errors import Code, MeshError

PATH: Final = "/.well-known/openid-configuration"
MAX_DOCUMENT: Final = 256 * 1024  # bytes
_MAX_ISSUER: Final = 2048


class DiscoveryCode(Code):
    """Why an issuer's description does not lead to its keys."""

    CONTENT = "discovery_content"
    ISSUER = "discovery_issuer"


class DiscoveryError(MeshError):
    """A description that cannot be used; it never shows what the document held."""


def discovery_address(issuer: str) -> str:
    """The address of an issuer's description (section 4); empty when the name leads nowhere.

    One slash at the end of the name is left out (4.1). Only `https` and `http` names with a host, and
    without user, query and fragment, have a description.
    """
    try:
        parts = urlsplit(issuer)
        good = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return ""
    plain = issuer.isascii() and issuer.isprintable() and not set(issuer) & set(" \\?#")
    if not good or not plain or "@" in parts.netloc or len(issuer) > _MAX_ISSUER:
        return ""
    return issuer.removesuffix("/") + PATH


def is_discovery(address: str) -> bool:
    """True when the address is that of a description, and not of a key set."""
    return address.endswith(PATH)


def keys_address(document: bytes, address: str) -> str:
    """The `jwks_uri` of a description that was read from `address`.

    Its `issuer` must be the one that was asked (4.3): else whoever serves the document of one issuer
    could bring the keys of another. A slash at the end is not compared, since the address does not have it.

    Raises:
        DiscoveryError: no JSON object, another issuer, or no `jwks_uri`.
    """
    if len(document) > MAX_DOCUMENT:
        raise DiscoveryError(DiscoveryCode.CONTENT, f"the description is over {MAX_DOCUMENT} bytes")
    try:
        data = json.loads(document)
    except (ValueError, RecursionError):
        raise DiscoveryError(DiscoveryCode.CONTENT, "the description is not JSON") from None
    if not isinstance(data, dict):
        raise DiscoveryError(DiscoveryCode.CONTENT, "the description is not a JSON object")
    issuer, uri = data.get("issuer"), data.get("jwks_uri")
    if not isinstance(issuer, str) or issuer.removesuffix("/") != address.removesuffix(PATH):
        raise DiscoveryError(
            DiscoveryCode.ISSUER, "the description is that of another issuer (OpenID Connect Discovery 4.3)"
        )
    if not isinstance(uri, str) or not uri or is_discovery(uri):
        raise DiscoveryError(DiscoveryCode.CONTENT, "the description has no jwks_uri")
    return uri
