"""Origin authentication -> Envoy `jwt_authn`."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2
from envoy.type.matcher.v3 import regex_pb2
from google.protobuf import empty_pb2

from mesh.envoy import messages as m
from mesh.envoy.rbac import JWT_PAYLOAD
from mesh.meshconfig import MeshConfig
from mesh.policy.effective import JwtPolicy, JwtProvider, JwtRegion
from mesh.policy.predicates import MatchKind, StringMatch

JWT_CACHE_SIZE: Final = 200
"""Verified tokens kept per provider and worker: takes most of the cost of RS256 away. A cached token
still expires, and goes at once when its key leaves the set."""


def jwt_authn(policy: JwtPolicy, mesh: MeshConfig) -> Any:
    """The filter's configuration; without regions it looks at no token.

    Raises:
        RenderError: when a region names a provider that does not exist.
    """
    providers = {provider.key: _provider(provider, mesh) for provider in policy.providers}
    for region in policy.regions:
        for key in region.providers:
            if key not in providers:
                raise m.RenderError(m.RenderCode.OPTION, f"a region names the unknown provider {key[:80]!r}")
    return config_pb2.JwtAuthentication(
        providers=providers,
        rules=[rule for region in policy.regions for rule in _rules(region)],
        bypass_cors_preflight=True,
    )


def _provider(provider: JwtProvider, mesh: MeshConfig) -> Any:
    found = config_pb2.JwtProvider(
        issuer=provider.issuer,
        audiences=provider.audiences,
        local_jwks=base_pb2.DataSource(inline_string=provider.jwks),
        from_headers=[
            config_pb2.JwtHeader(name=header.name, value_prefix=header.prefix)
            for header in provider.from_headers
        ],
        from_params=provider.from_params,
        from_cookies=provider.from_cookies,
        forward=provider.forward,
        forward_payload_header=provider.output_payload_header,
        claim_to_headers=[
            config_pb2.JwtClaimToHeader(header_name=header, claim_name=claim)
            for header, claim in provider.claim_headers
        ],
        payload_in_metadata=JWT_PAYLOAD,
        require_expiration=mesh.jwt_require_expiration,
        clock_skew_seconds=mesh.jwt_clock_skew_seconds,
        jwt_cache_config=config_pb2.JwtCacheConfig(jwt_cache_size=JWT_CACHE_SIZE),
    )
    found.normalize_payload_in_metadata.space_delimited_claims.extend(provider.space_delimited_claims)
    return found


def _rules(region: JwtRegion) -> list[Any]:
    """Rules of a region, one per path; the first rule that matches a request decides."""
    paths = region.paths or (StringMatch(MatchKind.PRESENT),)
    requires = _requires(region)
    return [
        config_pb2.RequirementRule(match=_route_match(path), requires=requires)
        if requires is not None
        else config_pb2.RequirementRule(match=_route_match(path))
        for path in paths
    ]


def _requires(region: JwtRegion) -> Any:
    """Any of the providers; plus, where that is allowed, nothing at all.

    `allow_missing` and not `allow_missing_or_failed`: a bad token is 401, not a request without
    identity, except where the (legacy) policy says that it is.
    """
    if not region.providers:
        return None
    options = [config_pb2.JwtRequirement(provider_name=key) for key in region.providers]
    if region.allow_failed:
        options.append(config_pb2.JwtRequirement(allow_missing_or_failed=empty_pb2.Empty()))
    elif region.allow_missing:
        options.append(config_pb2.JwtRequirement(allow_missing=empty_pb2.Empty()))
    if len(options) == 1:
        return options[0]
    return config_pb2.JwtRequirement(requires_any=config_pb2.JwtRequirementOrList(requirements=options))


def _route_match(path: StringMatch) -> Any:
    match = route_components_pb2.RouteMatch
    if path.kind is MatchKind.EXACT:
        return match(path=path.value)
    if path.kind is MatchKind.PREFIX:
        return match(prefix=path.value)
    if path.kind is MatchKind.SUFFIX:
        return match(safe_regex=regex_pb2.RegexMatcher(regex=f".*{m.quoted(path.value)}"))
    return match(prefix="/")
