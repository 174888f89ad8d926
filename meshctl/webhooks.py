"""Which webhooks an API server calls for a new pod: the selectors of every configuration, evaluated.

Source: the API reference of MutatingWebhookConfiguration. A webhook is called when a rule, the namespace
selector, the object selector and every matchCondition hold. Conditions are CEL, which is not evaluated
here: they are named instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from injector.core.selectors import LabelSelector, Operator, Requirement, SelectorError

_MESHES: Final = (
    ("sidecar-injector.gatehouse.dev", "gatehouse"),
    ("sidecar-injector.istio.io", "istio"),
    ("linkerd-proxy-injector.linkerd.io", "linkerd"),
    ("consul.hashicorp.com", "consul"),
    ("mesh.kuma.io", "kuma"),
    ("kuma-injector.kuma.io", "kuma"),
    ("osm-inject.k8s.io", "osm"),
)


@dataclass(frozen=True, slots=True)
class Called:
    """One webhook, with the answer for one pod.

    Attributes:
        configuration: name of the MutatingWebhookConfiguration.
        name: of the webhook within it.
        mesh: whose sidecar it injects: gatehouse, istio, linkerd, ...; empty for other webhooks.
        called: the API server would call it.
        why: the requirement that failed, or what was asked for.
        conditions: names of its matchConditions, which may still say no.
    """

    configuration: str
    name: str
    mesh: str
    called: bool
    why: str
    failure_policy: str
    conditions: tuple[str, ...] = ()

    def to_json(self) -> Mapping[str, Any]:
        """For programs; field names are stable."""
        return {
            "configuration": self.configuration,
            "webhook": self.name,
            "mesh": self.mesh,
            "called": self.called,
            "why": self.why,
            "failure_policy": self.failure_policy,
            "match_conditions": list(self.conditions),
        }


def mesh_of(configuration: Mapping[str, Any], webhook: Mapping[str, Any]) -> str:
    """Whose sidecars a webhook injects, told by its well-known name; empty for other webhooks."""
    name = str(webhook.get("name") or "")
    for suffix, mesh in _MESHES:
        if name.endswith(suffix):
            return mesh
    labels = (configuration.get("metadata") or {}).get("labels") or {}
    return {"gatehouse": "gatehouse", "sidecar-injector": "istio"}.get(str(labels.get("app")), "")


def sees_new_pods(webhook: Mapping[str, Any]) -> bool:
    """A rule of the webhook covers the creation of core/v1 pods."""
    for rule in webhook.get("rules") or ():
        resources = rule.get("resources") or ()
        if (
            {"CREATE", "*"} & set(rule.get("operations") or ())
            and {"", "*"} & set(rule.get("apiGroups") or ())
            and {"v1", "*"} & set(rule.get("apiVersions") or ())
            and {"pods", "*", "*/*"} & set(resources)
            and rule.get("scope", "*") in {"*", "Namespaced"}
        ):
            return True
    return False


def evaluate(
    configurations: Iterable[Mapping[str, Any]],
    *,
    namespace_labels: Mapping[str, str],
    pod_labels: Mapping[str, str],
) -> Sequence[Called]:
    """Every webhook that looks at new pods, in the order of their names, with the answer for this pod."""
    found = []
    for item in sorted(configurations, key=lambda c: str((c.get("metadata") or {}).get("name"))):
        for webhook in item.get("webhooks") or ():
            if sees_new_pods(webhook):
                called, why = _selected(webhook, namespace_labels, pod_labels)
                found.append(
                    Called(
                        str((item.get("metadata") or {}).get("name") or ""),
                        str(webhook.get("name") or ""),
                        mesh_of(item, webhook),
                        called,
                        why,
                        str(webhook.get("failurePolicy") or "Fail"),
                        tuple(str(c.get("name")) for c in webhook.get("matchConditions") or ()),
                    )
                )
    return found


def _selected(
    webhook: Mapping[str, Any], namespace: Mapping[str, str], pod: Mapping[str, str]
) -> tuple[bool, str]:
    asked = []
    for field, what, labels in (
        ("namespaceSelector", "namespace", namespace),
        ("objectSelector", "pod", pod),
    ):
        try:
            selector = LabelSelector.parse(webhook.get(field) or {}, field)
        except SelectorError as error:
            return False, error.public
        for requirement in selector.requirements:
            if not requirement.matches(labels):
                return False, f"{what}: {_told(requirement, labels)}"
            if requirement.operator in {Operator.IN, Operator.EXISTS}:
                asked.append(f"{what}: {requirement.key}={labels[requirement.key]}")
    return True, ", ".join(asked) or "it takes every pod"


def _told(requirement: Requirement, labels: Mapping[str, str]) -> str:
    key, values = requirement.key, " or ".join(requirement.values)
    has = f"it is {labels[key]!r}" if key in labels else "there is none"
    match requirement.operator:
        case Operator.IN:
            return f"label {key} must be {values}; {has}"
        case Operator.NOT_IN:
            return f"label {key} must not be {values}; {has}"
        case Operator.EXISTS:
            return f"label {key} must be set"
        case Operator.DOES_NOT_EXIST:
            return f"label {key} must not be set; {has}"
