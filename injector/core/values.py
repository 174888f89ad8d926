"""Parsers of option values: text in, typed value out, or ValueError with what is allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn

from mesh import ports

_QUANTITY = re.compile(
    r"(?P<number>[0-9]{1,15}(\.[0-9]{1,9})?)(?P<unit>n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"
)
_UNITS: dict[str | None, Decimal] = {
    None: Decimal(1),
    "n": Decimal("0.000000001"),
    "u": Decimal("0.000001"),
    "m": Decimal("0.001"),
    **{u: Decimal(1000) ** i for i, u in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{u: Decimal(1024) ** i for i, u in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
# Reference grammar of the OCI distribution specification: host, path, tag, digest; bounded.
_IMAGE = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,253}[A-Za-z0-9])?(/[a-z0-9]+([._-]+[a-z0-9]+)*){1,8}"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
COMPONENTS = frozenset(
    [
        "a2a",
        "admin",
        "ai_protocol_manager",
        "alternate_protocols_cache",
        "assert",
        "aws",
        "backtrace",
        "basic_auth",
        "cache_filter",
        "client",
        "compression",
        "config",
        "conn_handler",
        "connection",
        "credential_injector",
        "decompression",
        "dns",
        "dubbo",
        "dynamic_modules",
        "envoy_bug",
        "ext_authz",
        "ext_proc",
        "file",
        "filter",
        "forward_proxy",
        "geolocation",
        "golang",
        "grpc",
        "happy_eyeballs",
        "hc",
        "health_checker",
        "http",
        "http2",
        "hystrix",
        "init",
        "io",
        "ip_tagging",
        "json_rpc",
        "jwt",
        "kafka",
        "key_value_store",
        "local_rate_limit",
        "lua",
        "main",
        "matcher",
        "mcp",
        "misc",
        "mongo",
        "multi_connection",
        "notification",
        "oauth2",
        "pool",
        "quic",
        "quic_stream",
        "rate_limit_quota",
        "rbac",
        "rds",
        "redis",
        "rocketmq",
        "router",
        "runtime",
        "secret",
        "sse",
        "stats",
        "stats_sinks",
        "tap",
        "testing",
        "thrift",
        "tracing",
        "udp",
        "upstream",
        "wasm",
        "websocket",
    ]
)
"""Envoy 1.40's loggers (`/logging`); it refuses to start with any other name."""
_LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
_MAX_JSON = 32 << 10
_MAX_TARGETS = 16
_METRICS_PATH = re.compile(r"/[A-Za-z0-9_.~!$&'()*+,;=:@%/?-]{0,500}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PREFIXES = re.compile(r"[A-Za-z0-9_.|-]{1,100}")


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """A port of the application that serves metrics, and the path."""

    port: int
    path: str

    def __str__(self) -> str:
        return f"{self.port}:{self.path}"


def quantity(text: str) -> str:
    """A Kubernetes resource quantity, e.g. `100m`, `128Mi`, `0.5`; returned as it was written."""
    if not _QUANTITY.fullmatch(text):
        raise ValueError("expected a quantity such as 100m, 0.5, 128Mi or 1Gi")
    return text


def amount(text: str) -> Decimal:
    """The number that a quantity stands for."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("expected a quantity such as 100m, 0.5, 128Mi or 1Gi")
    return Decimal(match["number"]) * _UNITS[match["unit"]]


def boolean(text: str) -> bool:
    """`true` or `false` in any case."""
    lowered = text.strip().lower()
    if lowered not in {"true", "false"}:
        raise ValueError('expected "true" or "false"')
    return lowered == "true"


def integer(low: int, high: int) -> Any:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or not low <= int(text) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(text)

    return parse


def image(text: str) -> str:
    """An image reference with a registry or repository path."""
    if len(text) > 500 or not _IMAGE.fullmatch(text):
        raise ValueError("expected an image reference such as registry.example/gatehouse/proxy:1.0")
    return text


def log_level(text: str) -> str:
    """One of Envoy's log levels."""
    if text not in _LEVELS:
        raise ValueError(f"expected one of {', '.join(_LEVELS)}")
    return text


def component_levels(text: str) -> str:
    """Levels by Envoy component: `upstream:debug,connection:trace`."""
    items = [item.strip() for item in text.split(",")]
    for item in items[: len(COMPONENTS)]:
        name, _, level = item.partition(":")
        if name not in COMPONENTS or level not in _LEVELS:
            raise ValueError(f"{item[:60]!r} is not component:level, such as upstream:debug")
    if len(items) > len(COMPONENTS):
        raise ValueError(f"expected at most {len(COMPONENTS)} components")
    return ",".join(items)


def words(text: str) -> tuple[str, ...]:
    """A comma list of statistics prefixes or suffixes."""
    items = tuple(item.strip() for item in text.split(",") if item.strip())
    if len(items) > 64 or not all(_PREFIXES.fullmatch(item) for item in items):
        raise ValueError("expected a comma list of names (letters, digits, _ . | -), at most 64")
    return items


def scrape_targets(text: str) -> tuple[ScrapeTarget, ...]:
    """A comma list of `port` or `port:path`, e.g. `8080:/metrics,9100`."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items or len(items) > _MAX_TARGETS:
        raise ValueError(f"expected 1 to {_MAX_TARGETS} targets such as 8080:/metrics")
    found = [scrape_target(port, path) for port, _, path in (item.partition(":") for item in items)]
    if len({target.port for target in found}) != len(found):
        raise ValueError("two targets have the same port")
    return tuple(found)


def scrape_target(port: str, path: str) -> ScrapeTarget:
    """A target from the texts of two annotations; an empty path is `/metrics`."""
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"{port[:40]!r} is not a port (1 to 65535)")
    if int(port) in ports.RESERVED:
        raise ValueError(f"port {port} belongs to the proxy; name a port of the application")
    path = path or "/metrics"
    if not _METRICS_PATH.fullmatch(path):
        raise ValueError(f"{path[:40]!r} is not a path such as /metrics")
    return ScrapeTarget(int(port), path)


def named_objects(text: str) -> Mapping[str, Mapping[str, Any]]:
    """JSON: an object of objects by name, or (as the API reference has it) a list with `name` in each.

    Names are those of volumes: DNS labels.
    """
    if len(text) > _MAX_JSON:
        raise ValueError(f"expected at most {_MAX_JSON >> 10} KiB of JSON")
    data = strict_json(text)
    if isinstance(data, list) and all(isinstance(d, dict) and isinstance(d.get("name"), str) for d in data):
        named = {d["name"]: {k: v for k, v in d.items() if k != "name"} for d in data}
        if len(named) != len(data):
            raise ValueError("two entries have the same name")
        data = named
    if not isinstance(data, dict) or not all(isinstance(v, dict) for v in data.values()):
        raise ValueError('expected an object such as {"my-volume": {...}}')
    for name in data:
        if not _LABEL.fullmatch(name):
            raise ValueError(f"{name[:63]!r} is not a name (lower-case letters, digits and -, at most 63)")
    return data


def strict_json(text: str) -> Any:
    """JSON that every reader understands alike: no duplicate key, no NaN, no lone surrogate.

    Raises:
        ValueError: saying what is wrong.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
        json.dumps(data, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON: {error}") from error
    except UnicodeEncodeError as error:
        raise ValueError("expected JSON: half of a surrogate pair") from error
    except RecursionError as error:
        raise ValueError("expected JSON: nested too deeply") from error
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"expected JSON: {name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("expected JSON: a key occurs twice in one object")
    return found
