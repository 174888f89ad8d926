"""Small builders that every renderer shares: Any, SDS and ADS sources, addresses, matchers.

xds-protos has no type information, so messages are `Any` to the type checker; each function here
says what it really returns.
"""

from __future__ import annotations

import re
from typing import Any, Final

from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf import any_pb2, duration_pb2, wrappers_pb2

from mesh.errors import Code, MeshError
from mesh.policy.predicates import MatchKind, StringMatch
from mesh.topology import SocketAddress

SPIFFE_PREFIX: Final = "spiffe://"
NEVER_SAN: Final = "gatehouse:never"
"""A URI that no certificate of the mesh can hold: stands where an empty list would accept anybody."""


class RenderCode(Code):
    """Why an input cannot be rendered."""

    PREDICATE = "render_predicate"
    DUPLICATE_RULE = "render_duplicate_rule"
    OPTION = "render_option"


class RenderError(MeshError):
    """An effective policy or option that has no Envoy form; the caller keeps what was good before."""


def encode(message: Any) -> bytes:
    """Bytes of a message; map entries are sorted, so that equal messages have equal bytes."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def pack(message: Any) -> any_pb2.Any:
    """The message as an Any with deterministic bytes."""
    return any_pb2.Any(type_url=f"type.googleapis.com/{message.DESCRIPTOR.full_name}", value=encode(message))


def seconds(value: int) -> duration_pb2.Duration:
    """A duration of whole seconds."""
    return duration_pb2.Duration(seconds=value)


def tenths(value: int) -> duration_pb2.Duration:
    """A duration of tenths of a second."""
    return duration_pb2.Duration(seconds=value // 10, nanos=value % 10 * 100_000_000)


def add_unpublished(message: Any, number: int, value: Any) -> None:
    """Set a message field that our Envoy has and the newest published messages of its API do not.

    It travels as a field that protobuf does not know here, and keeps. Data made of the message (golden
    files) does not show it.

    Args:
        message: gets the field; once published, the field itself is set by the same bytes.
        number: of the field, 1 to 15.
        value: a message of less than 128 bytes.
    """
    body = encode(value)
    if not 1 <= number <= 15 or len(body) > 127:
        raise AssertionError("tag and length must be one byte each")
    message.MergeFromString(bytes((number << 3 | 2, len(body))) + body)


def boolean(value: bool) -> wrappers_pb2.BoolValue:
    """A boolean that is present even when false."""
    return wrappers_pb2.BoolValue(value=value)


def uint32(value: int) -> wrappers_pb2.UInt32Value:
    """A number that is present even when zero."""
    return wrappers_pb2.UInt32Value(value=value)


def ads() -> Any:
    """Config source of everything that the agent sends: ADS, and wait for ever (prototype P5).

    A timeout would let a proxy without configuration become live, or drop a resource silently.
    """
    source = config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.V3
    )
    source.initial_fetch_timeout.SetInParent()
    return source


def sds(name: str) -> Any:
    """Reference to a secret. Identical bytes everywhere, or Envoy opens duplicate clients (S-11)."""
    return secret_pb2.SdsSecretConfig(name=name, sds_config=ads())


def socket_address(address: SocketAddress) -> Any:
    """`core.Address` of an IP literal and a TCP port."""
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=address.host, port_value=address.port)
    )


def pipe_address(path: str) -> Any:
    """`core.Address` of a Unix socket."""
    return address_pb2.Address(pipe=address_pb2.Pipe(path=path))


def transport_socket(name: str, config: Any) -> Any:
    """`core.TransportSocket` with its typed configuration."""
    return base_pb2.TransportSocket(name=name, typed_config=pack(config))


def safe_regex(pattern: str) -> Any:
    """`StringMatcher` of a regular expression (RE2, always a full match)."""
    return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=pattern))


def exact(value: str) -> Any:
    """`StringMatcher` of one string."""
    return string_pb2.StringMatcher(exact=value)


def prefix(value: str) -> Any:
    """`StringMatcher` of a non-empty prefix."""
    return string_pb2.StringMatcher(prefix=value)


def quoted(text: str) -> str:
    """Text as an RE2 literal: everything but letters, digits and underscores is escaped.

    Python's own quoting leaves nothing special bare, and RE2 accepts an escaped ASCII punctuation
    character; other characters stand for themselves in both.
    """
    return re.sub(r"([!-/:-@\[-^`{-~ ])", r"\\\1", text)


def string_matcher(match: StringMatch) -> Any:
    """`StringMatcher` of a comparison; an empty prefix or suffix means "present"."""
    kind = match.kind
    if kind in {MatchKind.PREFIX, MatchKind.SUFFIX} and not match.value:
        kind = MatchKind.PRESENT
    ignore_case = match.ignore_case
    match kind:
        case MatchKind.EXACT:
            return string_pb2.StringMatcher(exact=match.value, ignore_case=ignore_case)
        case MatchKind.PREFIX:
            return string_pb2.StringMatcher(prefix=match.value, ignore_case=ignore_case)
        case MatchKind.SUFFIX:
            return string_pb2.StringMatcher(suffix=match.value, ignore_case=ignore_case)
        case MatchKind.PRESENT:
            # (?s): a line break in a claim must not make it look absent.
            return safe_regex("(?s).+")
