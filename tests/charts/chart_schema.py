"""Makes `values.schema.json`: by hand for what the chart decides, from the settings classes for the rest.

So a typo in a setting of a process is refused by Helm, with the setting's own bounds, and a new setting
can be given to the chart as soon as the process knows it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import pathlib
import types
import typing
from collections.abc import Iterable
from typing import Any

from ca.config import CaConfig
from injector.config import InjectorConfig
from mesh.settings_values import Bounds, format_value
from nodeagent.config import AgentSettings
from tests.fakes.helm import CHART

Json = dict[str, Any]
SCHEMA_FILE = CHART / "values.schema.json"

# Settings that must fit other objects of the chart: it sets them, or they have no meaning in a cluster.
OWN: dict[str, frozenset[str]] = {
    "ca": frozenset(
        {
            "trust_domain", "state_dir", "ca_dir", "listen", "log_level", "log_json", "serving.names",
            "serving_grants", "token.jwks_file", "token.audiences", "cluster.kubernetes",
            "cluster.kubeconfig", "cluster.namespace", "cluster.replica", "cluster.secret", "cluster.lease",
            "cluster.root_config_map", "cluster.owner_cluster_role", "cluster.token_review", "cluster.agents",
            "rotation.automatic", "rotation.hold",
        }
    ),
    "injector": frozenset(
        {
            "namespace", "service", "serving_dir", "listen.https", "listen.plain", "listen.metrics",
            "metrics_dir", "events", "kubeconfig", "log_level", "log_json", "injection.proxy_image",
            "injection.image_pull_policy", "injection.node_capture", "capture_agent.node_name",
            "capture_agent.service", "capture_agent.socket",
            "injection.image_pull_secrets", "injection.trust_domain", "injection.version",
            "injection.selection.revision", "injection.selection.tags",
            "injection.selection.namespaces_by_default", "injection.selection.excluded_namespaces",
            "certificate.ca_address", "certificate.token_file", "certificate.root_file", "certificate.listen",
            "certificate.metrics", "upkeep.service", "upkeep.lease", "upkeep.webhook_selector",
            "upkeep.roots_config_map", "upkeep.jwks.config_map", "upkeep.jwks.ca_file",
            "upkeep.nodes.config_map", "upkeep.policy_status",
        }
    ),
    "nodeagent": frozenset(
        {
            "mode", "directory", "sockets", "listen", "metrics_tls", "log_level", "ca.address",
            "ca.root_file", "ca.token_file", "kubernetes.node_name", "kubernetes.kubeconfig",
            "kubernetes.namespace", "kubernetes.cluster_domain", "kubernetes.kubelet_dir",
            "kubernetes.driver_name", "kubernetes.audience", "kubernetes.state_dir", "mesh.trust_domain",
        }
    ),
}  # fmt: skip
CLASSES: dict[str, type[Any]] = {"ca": CaConfig, "injector": InjectorConfig, "nodeagent": AgentSettings}

_DURATION = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$"
_NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
_TEXT: Json = {"type": "string"}
_FLAG: Json = {"type": "boolean"}
_LABELS: Json = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
_ANNOTATIONS: Json = {"type": "object", "additionalProperties": {"type": "string"}}
_OBJECTS: Json = {"type": "array", "items": {"type": "object"}}
_FREE: Json = {"type": "object"}
# `required` is about maps only: text is a template.
_EXTRA_OBJECT: Json = {"type": ["object", "string"], "required": ["apiVersion", "kind", "metadata"]}
_QUANTITY: Json = {"type": ["string", "integer"], "pattern": r"^[0-9.]+(m|k|Ki|M|Mi|G|Gi)?$"}


def values_schema() -> Json:
    """The whole schema."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the Gatehouse chart",
        **_map(
            {
                "global": _global(),
                "nameOverride": {"type": "string", "maxLength": 40},
                "fullnameOverride": {"type": "string", "maxLength": 40},
                "commonLabels": _LABELS,
                "commonAnnotations": _ANNOTATIONS,
                "extraObjects": _list(_EXTRA_OBJECT),
                "trustDomain": {"type": "string", "pattern": "^[a-z0-9._-]{1,255}$"},
                "clusterDomain": {"type": "string", "pattern": "^[a-z0-9.-]{1,253}$"},
                "image": _image(),
                "log": _map(
                    {"level": _choice("debug", "info", "warning", "error"), "format": _choice("json", "text")}
                ),
                "metrics": _map(
                    {
                        "annotations": _FLAG,
                        "tls": _FLAG,
                        "serviceMonitor": _map(
                            {"enabled": _FLAG, "interval": _duration(), "labels": _LABELS}
                        ),
                        "prometheusRule": _map({"enabled": _FLAG, "labels": _LABELS}),
                        "dashboards": _map(
                            {"enabled": _FLAG, "labels": _LABELS, "annotations": _ANNOTATIONS}
                        ),
                    }
                ),
                "podSecurity": _map(
                    {"runAsUser": _number(1), "runAsGroup": _number(0), "fsGroup": _number(0)}
                ),
                "openshift": _map({"enabled": _FLAG}),
                "networkPolicy": _map(
                    {
                        "enabled": _FLAG,
                        "metricsFrom": _OBJECTS,
                        "caFrom": _OBJECTS,
                        "egress": _map(
                            {
                                "enabled": _FLAG,
                                "dnsPorts": _ports(),
                                "apiServerPorts": _ports(),
                                "issuerPorts": _ports(),
                            }
                        ),
                    }
                ),
                "test": _map({"traffic": _FLAG}),
                "crds": _map({"install": _FLAG, "keep": _FLAG}),
                "ca": _ca(),
                "injector": _injector(),
                "upkeep": _map(
                    {
                        **_component(), **_spread(), "replicas": _count(), "policyStatus": _FLAG,
                        "issuerRoots": _TEXT,
                    }
                ),
                "capture": _map(
                    {
                        **_component(), "mode": _choice("pod", "node"),
                        "worker": _map({"resources": _resources()}),
                        "maxUnavailable": _share(), "seLinuxOptions": _selinux(),
                    }
                ),
                "nodeagent": _nodeagent(),
            }
        ),
    }  # fmt: skip


def _global() -> Json:
    """Open: a parent chart puts keys of its other charts there too."""
    secret = {"type": ["string", "object"], "required": ["name"]}
    return {"type": "object", "properties": {"imageRegistry": _registry(), "imagePullSecrets": _list(secret)}}


def _registry() -> Json:
    return {"type": "string", "pattern": "^[A-Za-z0-9._:/-]*$"}


def _image() -> Json:
    one = _map(
        {
            "repository": {"type": "string", "pattern": "^[a-z0-9._/-]+$"},
            "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
        }
    )
    return _map(
        {
            "registry": _registry(),
            "tag": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{0,128}$"},
            "pullPolicy": _choice("Always", "IfNotPresent", "Never"),
            "pullSecrets": _list(_TEXT),
            "podPullSecrets": _list(_TEXT),
            "control": one,
            "proxy": one,
        }
    )


def _ca() -> Json:
    return _map(
        {
            **_component(),
            **_spread(),
            "replicas": _count(),
            "autoscaling": _autoscaling(),
            "pdb": _pdb(),
            "existingSecret": _TEXT,
            "keepRoot": _FLAG,
            "tokenReview": _FLAG,
            "rotation": _map({"automatic": _FLAG, "hold": {"type": "string", "pattern": _DURATION}}),
            "config": settings_schema("ca"),
        }
    )


def _injector() -> Json:
    return _map(
        {
            **_component(),
            **_spread(),
            "replicas": _count(),
            "autoscaling": _autoscaling(),
            "pdb": _pdb(),
            "revision": _NAME,
            "tags": _list(_NAME),
            "namespacesByDefault": _FLAG,
            # `--set` makes booleans of the words.
            "nativeSidecars": {"enum": ["auto", "true", "false", True, False]},
            "excludedNamespaces": _list(_NAME),
            "events": _FLAG,
            "policyWebhook": _map(
                {
                    "enabled": _FLAG,
                    "failurePolicy": _choice("Fail", "Ignore"),
                    "timeoutSeconds": {"type": "integer", "minimum": 1, "maximum": 30},
                }
            ),
            "webhook": _map(
                {
                    "failurePolicy": _choice("Fail", "Ignore"),
                    "timeoutSeconds": {"type": "integer", "minimum": 1, "maximum": 30},
                    "reinvocationPolicy": _choice("Never", "IfNeeded"),
                }
            ),
            "certificate": _map({"resources": _resources()}),
            "config": settings_schema("injector"),
        }
    )


def _nodeagent() -> Json:
    path = {"type": "string", "pattern": "^/[A-Za-z0-9._/-]*[A-Za-z0-9._-]$"}
    return _map(
        {
            **_component(),
            "kubeletDir": path,
            "stateDir": path,
            "maxUnavailable": _share(),
            "seLinuxOptions": _selinux(),
            "config": settings_schema("nodeagent"),
        }
    )


def _component() -> Json:
    return {
        "extraArgs": _list(_TEXT),
        "extraEnv": _OBJECTS,
        "resources": _resources(),
        "priorityClassName": _TEXT,
        "terminationGracePeriodSeconds": {"type": "integer", "minimum": 1, "maximum": 3600},
        "podLabels": _LABELS,
        "podAnnotations": _ANNOTATIONS,
        "serviceAccountAnnotations": _ANNOTATIONS,
        "nodeSelector": _LABELS,
        "tolerations": _OBJECTS,
        "affinity": _FREE,
    }


def _spread() -> Json:
    return {"topologySpreadConstraints": _OBJECTS}


def _resources() -> Json:
    amounts = {"type": "object", "additionalProperties": _QUANTITY}
    return _map({"requests": amounts, "limits": amounts})


def _pdb() -> Json:
    return _map(
        {
            "enabled": _FLAG,
            "maxUnavailable": _share(),
        }
    )


def _autoscaling() -> Json:
    """No word here can compare two keys: templates/autoscaling.yaml refuses a minimum above the maximum."""
    return _map(
        {
            "enabled": _FLAG,
            "minReplicas": _count(),
            "maxReplicas": _count(),
            "targetCPU": {"type": "integer", "minimum": 1, "maximum": 1000},
        }
    )


def _share() -> Json:
    return {"type": ["integer", "string"], "pattern": "^[0-9]{1,3}%$", "minimum": 1}


def _selinux() -> Json:
    return _map({"user": _TEXT, "role": _TEXT, "type": _TEXT, "level": _TEXT})


def _count() -> Json:
    return {"type": "integer", "minimum": 1, "maximum": 100}


def _ports() -> Json:
    return _list({"type": "integer", "minimum": 1, "maximum": 65535})


def _number(least: int) -> Json:
    """Number of a user or a group, or null."""
    return {"type": ["integer", "null"], "minimum": least, "maximum": 2**31 - 1}


def _duration() -> Json:
    return {"type": "string", "pattern": _DURATION}


def _choice(*values: str) -> Json:
    return {"enum": list(values)}


def _list(item: Json) -> Json:
    return {"type": "array", "items": item}


def _map(properties: Json) -> Json:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def settings_schema(component: str) -> Json:
    """Settings of a process that a user of the chart may change."""
    schema = _settings(CLASSES[component], (), OWN[component])
    assert schema is not None
    return schema


def settings_paths(cls: type[Any], prefix: str = "") -> Iterable[str]:
    """Every setting of a class and every group of them, dotted."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        yield (path := f"{prefix}{item.name}")
        if dataclasses.is_dataclass(hints[item.name]) and _bounds(item).parse is None:
            yield from settings_paths(hints[item.name], f"{path}.")


def _settings(cls: type[Any], prefix: tuple[str, ...], own: frozenset[str]) -> Json | None:
    hints = typing.get_type_hints(cls)
    properties: Json = {}
    for item in dataclasses.fields(cls):
        path = (*prefix, item.name)
        if ".".join(path) in own:
            continue
        hint, bounds = hints[item.name], _bounds(item)
        if dataclasses.is_dataclass(hint) and bounds.parse is None:
            nested = _settings(typing.cast("type[Any]", hint), path, own)
            if nested is not None:
                properties[item.name] = nested
        else:
            properties[item.name] = _of_type(hint, bounds)
    return _map(properties) if properties else None


def _bounds(item: dataclasses.Field[Any]) -> Bounds:
    meta = item.metadata.get("gatehouse_setting")
    return meta.bounds if meta is not None else Bounds()


def _of_type(hint: Any, bounds: Bounds) -> Json:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {types.UnionType, typing.Union}:
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return {"anyOf": [_of_type(inner, bounds), {"type": "null"}]}
    if origin is tuple:
        return _list(_of_type(arguments[0], bounds))
    if bounds.parse is not None:
        return _TEXT
    if origin is dict or hint is dict:
        return _FREE
    if dataclasses.is_dataclass(hint):
        nested = _settings(typing.cast("type[Any]", hint), (), frozenset())
        assert nested is not None
        return nested
    if hint is dt.timedelta:
        return _duration()
    if hint is bool:
        return _FLAG
    if hint in {int, float}:
        limits = {"minimum": bounds.minimum, "maximum": bounds.maximum}
        kind = "integer" if hint is int else "number"
        return {"type": kind, **{name: value for name, value in limits.items() if value is not None}}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice(*(format_value(member) for member in hint))
    assert hint in {str, pathlib.Path}, f"no JSON type for {hint}"
    return _TEXT
