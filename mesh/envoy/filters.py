"""Network filters of a chain: the HTTP connection manager and the TCP proxy."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, Final

from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import (
    config_source_pb2,
    extension_pb2,
    protocol_pb2,
    substitution_format_string_pb2,
)
from envoy.config.listener.v3 import listener_components_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2 as state_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.http.set_filter_state.v3 import set_filter_state_pb2 as http_state_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2 as network_state_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2 as early_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import percent_pb2

from mesh.envoy import extensions
from mesh.envoy import messages as m
from mesh.meshconfig import ForwardClientCert, MeshConfig, PathNormalization

SERVER_NAME: Final = "gatehouse"
REQUEST_HEADERS_TIMEOUT_SECONDS: Final = 30
EARLY_DATA_BYTES: Final = 1024
"""Envoy asks for a bound on what it reads before it connects to the application."""
JITTER_FIELD: Final = 8
"""Number of `HttpProtocolOptions.max_connection_duration_jitter`."""
JITTER_PERCENT: Final = 10

_HCM: Final = "envoy.filters.network.http_connection_manager"
_ALPN_KEY: Final = "envoy.network.application_protocols"


class Connect(enum.Enum):
    """When a TCP proxy opens the connection to the application."""

    AT_ONCE = "at once"
    AFTER_HANDSHAKE = "after the TLS handshake"  # the application never sees a refused peer


def network_filter(name: str, config: Any) -> Any:
    """A filter of a chain."""
    return listener_components_pb2.Filter(name=name, typed_config=m.pack(config))


def policy_filters() -> list[Any]:
    """References to the workload's ECDS resources, in the order in which they run."""
    return [
        hcm_pb2.HttpFilter(
            name=name,
            config_discovery=config_source_pb2.ExtensionConfigSource(
                config_source=m.ads(), type_urls=[extensions.FILTER_TYPES[name]]
            ),
        )
        for name in extensions.HTTP_FILTERS
    ]


def inbound_http(stat_prefix: str, routes: Any, mesh: MeshConfig, *, draining: bool = False) -> Any:
    """HTTP connection manager of an inbound chain: policy, then the application.

    `x-forwarded-client-cert` on plaintext is dropped by each of the settings.

    Args:
        stat_prefix, routes, mesh: of the chain.
        draining: the workload is being deleted: each connection ends after one more request, so that
            callers go elsewhere while the port still answers.
    """
    manager = _manager(stat_prefix, mesh, policy_filters())
    manager.route_config.CopyFrom(routes)
    if mesh.forward_client_cert is ForwardClientCert.SANITIZE_SET:
        manager.forward_client_cert_details = hcm_pb2.HttpConnectionManager.SANITIZE_SET
    else:
        manager.forward_client_cert_details = hcm_pb2.HttpConnectionManager.APPEND_FORWARD
        manager.set_current_client_cert_details.dns = True
    # `Subject=""` says nothing of our own leaves; readers of Istio's header expect it there.
    manager.set_current_client_cert_details.subject.value = True
    manager.set_current_client_cert_details.uri = True
    if draining:
        manager.common_http_protocol_options.max_requests_per_connection.value = 1
    return network_filter(_HCM, manager)


def outbound_http(
    stat_prefix: str,
    mesh: MeshConfig,
    *,
    routes: Any = None,
    rds: str = "",
    alpn: Sequence[str] = (),
) -> Any:
    """HTTP connection manager of an outbound chain.

    Args:
        routes: inline route configuration, or
        rds: name of the one to ask for.
        alpn: tokens to offer instead of the cluster's.
    """
    filters = [_http_alpn(alpn)] if alpn else []
    manager = _manager(stat_prefix, mesh, filters)
    if rds:
        manager.rds.CopyFrom(hcm_pb2.Rds(config_source=m.ads(), route_config_name=rds))
    else:
        manager.route_config.CopyFrom(routes)
    manager.forward_client_cert_details = hcm_pb2.HttpConnectionManager.SANITIZE
    return network_filter(_HCM, manager)


def tcp_proxy(stat_prefix: str, cluster: str, connect: Connect = Connect.AT_ONCE) -> Any:
    """TCP proxy to a cluster."""
    proxy = tcp_proxy_pb2.TcpProxy(stat_prefix=stat_prefix, cluster=cluster)
    if connect is Connect.AFTER_HANDSHAKE:
        proxy.upstream_connect_mode = tcp_proxy_pb2.ON_DOWNSTREAM_TLS_HANDSHAKE
        proxy.max_early_data_bytes.value = EARLY_DATA_BYTES
    return network_filter("envoy.filters.network.tcp_proxy", proxy)


def network_alpn(tokens: Iterable[str]) -> Any:
    """Network filter that chooses the ALPN tokens of the connection to the server."""
    return network_filter(
        "envoy.filters.network.set_filter_state",
        network_state_pb2.Config(on_new_connection=[_alpn_value(tokens)]),
    )


def _http_alpn(tokens: Iterable[str]) -> Any:
    return hcm_pb2.HttpFilter(
        name="envoy.filters.http.set_filter_state",
        typed_config=m.pack(http_state_pb2.Config(on_request_headers=[_alpn_value(tokens)])),
    )


def _alpn_value(tokens: Iterable[str]) -> Any:
    value = state_pb2.FilterStateValue(
        object_key=_ALPN_KEY,
        shared_with_upstream=state_pb2.FilterStateValue.ONCE,
    )
    value.format_string.CopyFrom(_text(",".join(tokens)))
    return value


def _text(text: str) -> Any:
    found = substitution_format_string_pb2.SubstitutionFormatString()
    found.text_format_source.inline_string = text
    return found


def _manager(stat_prefix: str, mesh: MeshConfig, filters: Iterable[Any]) -> Any:
    kind = hcm_pb2.HttpConnectionManager
    manager = kind(
        stat_prefix=stat_prefix,
        server_name=SERVER_NAME,
        server_header_transformation=kind.APPEND_IF_ABSENT,
        # A sidecar is no edge: X-Forwarded-For is the caller's word, and no peer is "internal".
        use_remote_address=m.boolean(False),
        http_filters=[
            *filters,
            hcm_pb2.HttpFilter(
                name="envoy.filters.http.router",
                typed_config=m.pack(router_pb2.Router(suppress_envoy_headers=True)),
            ),
        ],
        upgrade_configs=[kind.UpgradeConfig(upgrade_type="websocket")],
        # Streams may be quiet for as long as both ends like; half-sent headers may not.
        stream_idle_timeout=m.seconds(0),
        request_headers_timeout=m.seconds(REQUEST_HEADERS_TIMEOUT_SECONDS),
    )
    # An empty list would mean every private address (seen): one that no caller has means none.
    manager.internal_address_config.cidr_ranges.add(address_prefix="255.255.255.255").prefix_len.value = 32
    manager.early_header_mutation_extensions.append(_without_envoy_headers())
    _set_path_normalization(manager, mesh.path_normalization)
    if mesh.max_connection_seconds:
        manager.common_http_protocol_options.CopyFrom(_bounded_age(mesh.max_connection_seconds))
    return manager


def _bounded_age(most: int) -> Any:
    """Connections end softly at 90 to 99 % of `most` seconds, drawn for each.

    Those of one age, made after a restart, would else end and be made anew together for ever.
    """
    options = protocol_pb2.HttpProtocolOptions(max_connection_duration=m.tenths(most * 9))
    m.add_unpublished(options, JITTER_FIELD, percent_pb2.Percent(value=JITTER_PERCENT))
    return options


def _without_envoy_headers() -> Any:
    """Drops `x-envoy-*` before anything reads a request.

    Envoy obeys such headers from anybody unless it is an edge proxy (seen: a client could cut its own
    answers by `x-envoy-upstream-rq-timeout-ms`), and a rule on routes would come too late.
    """
    names = string_pb2.StringMatcher(prefix="x-envoy-", ignore_case=True)
    mutation = mutation_rules_pb2.HeaderMutation(
        remove_on_match=mutation_rules_pb2.HeaderMutation.RemoveOnMatch(key_matcher=names)
    )
    return extension_pb2.TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=m.pack(early_pb2.HeaderMutation(mutations=[mutation])),
    )


def _set_path_normalization(manager: Any, option: PathNormalization) -> None:
    """What is evaluated is also what is forwarded; a path is decoded once, never twice."""
    kind = hcm_pb2.HttpConnectionManager
    manager.normalize_path.value = option is not PathNormalization.NONE
    manager.merge_slashes = option in {
        PathNormalization.MERGE_SLASHES,
        PathNormalization.DECODE_AND_MERGE_SLASHES,
    }
    decode = option is PathNormalization.DECODE_AND_MERGE_SLASHES
    manager.path_with_escaped_slashes_action = kind.UNESCAPE_AND_FORWARD if decode else kind.KEEP_UNCHANGED
