"""Options of a pod: what it says, else its namespace, else the mesh; all errors are told at once.

An unknown key under one of our prefixes is an error with the nearest known key: a misspelt annotation
must not silently mean "default".
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from injector.core import values
from injector.core.capture import CaptureError
from injector.core.keys import (
    ENABLED,
    INJECT,
    NAMESPACE_LABEL,
    OVERRIDES,
    READINESS,
    REVISION,
    SIDECAR,
    STATUS,
    TRAFFIC,
)
from injector.core.option_table import BY_KEY, OPTIONS, REFUSED, InterceptionMode, Option, PodOptions
from mesh.errors import MeshError

__all__ = [
    "OPTIONS",
    "InterceptionMode",
    "Option",
    "OptionProblem",
    "PodOptions",
    "reference_page",
    "resolve_options",
]

_OURS = (
    SIDECAR,
    TRAFFIC,
    READINESS,
    "status.sidecar.istio.io/",
    "proxy.istio.io/",
    "inject.istio.io/",
    "prometheus.istio.io/",
)
_CONTENTS = {
    STATUS: "JSON: version, digest of the mesh's settings, mode, what was added and what was replaced",
    OVERRIDES: "JSON: the `istio-proxy` container that the author declared",
    REVISION: "revision of the injector",
}
_WRITTEN = frozenset({INJECT, STATUS, OVERRIDES})


@dataclass(frozen=True, slots=True)
class OptionProblem:
    """One bad option, as it is told to the author of the pod."""

    key: str
    value: str
    message: str
    on_namespace: bool = False

    def __str__(self) -> str:
        where = "namespace annotation" if self.on_namespace else "annotation"
        return f"invalid value {self.value[:60]!r} for {where} {self.key!r}: {self.message}"


def resolve_options(
    pod: Mapping[str, str], namespace: Mapping[str, str], defaults: PodOptions
) -> tuple[PodOptions, tuple[OptionProblem, ...]]:
    """Effective options of a pod, and everything that is wrong with its annotations.

    Args:
        pod: annotations of the pod.
        namespace: annotations of its namespace: defaults for every option that allows it. A bad one
            is the namespace's problem and is reported like the pod's.
        defaults: of the mesh.
    """
    problems: list[OptionProblem] = []
    found: dict[str, Any] = {}
    for owner, on_namespace in ((namespace, True), (pod, False)):
        taken: dict[str, str] = {}
        for key in sorted(owner):
            message = _read(key, owner[key], found, taken, on_namespace=on_namespace)
            if message:
                problems.append(OptionProblem(key, owner[key], message, on_namespace))
    options = dataclasses.replace(defaults, **found)
    return options, (*problems, *_together(options))


def _read(
    key: str, value: str, found: dict[str, Any], taken: dict[str, str], *, on_namespace: bool
) -> str | None:
    """Take one annotation; returns what is wrong with it."""
    option = BY_KEY.get(key)
    if option is None:
        return _unknown(key, on_namespace=on_namespace)
    if on_namespace and not option.namespaced:
        return "allowed on pods only, not on a namespace"
    if option.field in taken:
        return f"it means the same as {taken[option.field]!r}; next: remove one of them"
    taken[option.field] = key
    try:
        found[option.field] = option.parse(value)
    except (ValueError, CaptureError) as error:
        return error.public if isinstance(error, MeshError) else str(error)
    return None


def _unknown(key: str, *, on_namespace: bool) -> str | None:
    if key in REFUSED:
        return REFUSED[key]
    if key == INJECT and on_namespace:
        return f"it selects no pod of a namespace; next: label the namespace {NAMESPACE_LABEL}={ENABLED}"
    if key in _WRITTEN or not key.startswith(_OURS):
        return None
    near = difflib.get_close_matches(key, [*BY_KEY, INJECT], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; docs/annotations.md lists them all"
    return "unknown annotation" + hint


def _together(options: PodOptions) -> list[OptionProblem]:
    """Checks that need two options."""
    problems = []
    for what, request, limit in (
        ("CPU", options.proxy_cpu, options.proxy_cpu_limit),
        ("Memory", options.proxy_memory, options.proxy_memory_limit),
    ):
        bound = values.amount(limit)
        if bound and values.amount(request) > bound:
            key = f"{SIDECAR}proxy{what}"
            problems.append(OptionProblem(key, request, f"request is above the limit {limit} ({key}Limit)"))
    return problems


def reference_page() -> str:
    """docs/annotations.md: every key, generated from the table."""
    defaults = PodOptions()
    lines = [
        "# Annotations",
        "",
        "<!-- Generated from injector/core/option_table.py by `make docs`; edit that file. -->",
        "",
        "What a pod can say about its sidecar. An annotation of the pod beats the same annotation of its",
        "namespace, which beats the default of the mesh. All errors of a pod are reported at once, and an",
        "unknown key under one of these prefixes is an error: a misspelt key never means the default.",
        "",
        f"Whether a pod is injected is said by the *label* `{INJECT}` (`true` or `false`) and by the",
        f"namespace's label `{NAMESPACE_LABEL}`; see [injection](injection.md).",
        "",
        "| annotation | type | default | on a namespace | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{o.key}` | {o.kind} | {_default(getattr(defaults, o.field))} | {'yes' if o.namespaced else 'no'}"
        f" | {o.meaning} |"
        for o in OPTIONS
    ]
    lines += [
        "",
        "## Refused",
        "",
        "These mean something to Istio and nothing here. A pod with one of them is denied, so that nobody",
        "relies on it.",
        "",
        "| annotation | why |",
        "| --- | --- |",
    ]
    lines += [f"| `{key}` | {why} |" for key, why in REFUSED.items()]
    lines += ["", "## Written by the injector", "", "| annotation | contents |", "| --- | --- |"]
    lines += [f"| `{key}` | {what} |" for key, what in _CONTENTS.items()]
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    match value:
        case None:
            return "automatic"
        case bool():
            return f"`{str(value).lower()}`"
        case InterceptionMode():
            return f"`{value.value}`"
        case () | "" | {}:
            return "none"
        case _:
            return f"`{value}`"
