"""`meshctl inject` and `meshctl uninject`: sidecars in manifests, by the code of the webhook."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from injector.core import podjson, workloads
from injector.core.decision import DEFAULT_REVISION, Outcome, Reason
from injector.core.inject import Result, inject, uninject
from injector.core.keys import ENABLED, NAMESPACE_LABEL, REVISION
from injector.core.nodes import DATA_KEY as NODES_KEY
from injector.core.nodes import NodesAndServer, NodeVersions
from injector.core.patch import apply_patch
from injector.core.settings import Cluster as ClusterView
from injector.core.settings import ClusterFeatures, InjectorSettings
from injector.core.workloads import Template
from mesh.errors import Code, MeshError
from mesh.kube.api import KubeCode, KubeError
from meshctl.cluster import Cluster, connect, installation, load_config
from meshctl.errors import CtlCode, CtlError, bad_argument
from meshctl.exits import EXIT_OK, EXIT_PROBLEM
from meshctl.stream import MAX_CHARACTERS, Chunk, changed_text, dump, join, split
from meshctl.terminal import Colour, Screen, counted, wrapped

if TYPE_CHECKING:
    from injector.config import InjectorConfig

_MAX_DIFF_LINE: Final = 160  # the proxy's bootstrap is one line of 9 KB


class OfflineCode(Code):
    """What was done with an object that the webhook would never see."""

    UNINJECTED = "uninjected"
    NOT_INJECTED = "not_injected"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was done with one object.

    Attributes:
        word: injected, unchanged, refused, uninjected.
        problems: more sentences; `warnings` likewise, for objects that are not refused.
    """

    place: str
    kind: str
    name: str
    word: str
    code: Code
    message: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    patch: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> Mapping[str, Any]:
        """For programs; field names are stable."""
        return {
            "place": self.place,
            "kind": self.kind,
            "name": self.name,
            "result": self.word,
            "code": str(self.code),
            "message": self.message,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "changes": list(self.changes),
            "patch": [dict(operation) for operation in self.patch],
        }


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Labels and annotations of namespaces, from the command line, the stream, the cluster, or assumed.

    Attributes:
        fixed: `--namespace-labels`, instead of everybody's labels.
        written: Namespace objects of the stream.
        cluster: asked for the others.
        assumed: labels of a namespace that nobody has said anything about.
    """

    fixed: Mapping[str, str] | None = None
    written: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cluster: Cluster | None = None
    assumed: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Labels and annotations of a namespace."""
        labels: dict[str, str] = {}
        annotations: dict[str, str] = {}
        if self.cluster is not None:
            item = self.cluster.get(f"/api/v1/namespaces/{name}") or {}
            labels |= podjson.labels_of(item)
            annotations |= podjson.annotations_of(item)
        item = dict(self.written.get(name) or {})
        labels |= podjson.labels_of(item)
        annotations |= podjson.annotations_of(item)
        if self.fixed is not None:
            labels = dict(self.fixed)
        elif not labels.keys() & {NAMESPACE_LABEL, REVISION}:
            labels |= self.assumed
        return labels, annotations


@dataclass(frozen=True, slots=True)
class Setting:
    """What injection works with."""

    settings: InjectorSettings
    capabilities: ClusterView
    namespaces: Namespaces
    namespace: str

    def inject(self, template: Template) -> Result:
        """Decide about a template.

        Raises:
            PodError: it is not shaped as a pod.
        """
        namespace = template.namespace or self.namespace
        labels, annotations = self.namespaces.of(namespace)
        return inject(
            template.pod,
            namespace=namespace,
            namespace_labels=labels,
            namespace_annotations=annotations,
            config=self.settings,
            capabilities=self.capabilities,
            workload="" if template.kind == "Pod" else template.name,
        )


def setting_of(options: argparse.Namespace, chunks: Sequence[Chunk], cluster: Cluster | None) -> Setting:
    """Settings from the options: the cluster's, a file's, or the defaults.

    Raises:
        CtlError, KubeError: with what cannot be read.
    """
    if options.config and cluster is not None and options.command == "inject":
        raise bad_argument("--config and --cluster are both given; next: leave one out")
    capabilities: ClusterView
    if cluster is not None:
        config = load_config(Path(options.config)) if options.config else installation(cluster)[1]
        capabilities = NodesAndServer(cluster.capabilities(), _nodes(cluster, config))
    else:
        capabilities = ClusterFeatures(native_sidecars=not getattr(options, "classic", False))
        config = load_config(Path(options.config) if options.config else None)
    settings = config.settings()
    names = {settings.selection.revision, *settings.selection.tags}
    default = (
        (NAMESPACE_LABEL, ENABLED) if DEFAULT_REVISION in names else (REVISION, settings.selection.revision)
    )
    namespaces = Namespaces(
        fixed=_pairs(options.namespace_labels),
        written=_written(chunks),
        cluster=cluster,
        assumed={} if cluster is not None else dict([default]),
    )
    home = options.namespace or (cluster.namespace if cluster is not None else "default")
    return Setting(settings, capabilities, namespaces, home)


def _nodes(cluster: Cluster, config: InjectorConfig) -> NodeVersions | None:
    """What the webhook knows of kubelets; None as well when we may not read it."""
    name = config.upkeep.nodes.config_map
    try:
        item = cluster.get(f"/api/v1/namespaces/{config.namespace}/configmaps/{name}") or {}
    except KubeError as error:
        if error.code is not KubeCode.FORBIDDEN:
            raise
        return None
    return NodeVersions.from_json(str((item.get("data") or {}).get(NODES_KEY, "")))


def read_files(files: Sequence[str]) -> list[Chunk]:
    """All documents of all files.

    Raises:
        CtlError: a file cannot be read.
        YamlError: with file and line.
    """
    if files.count("-") > 1:
        raise bad_argument("-f -: standard input can be read once only")
    chunks: list[Chunk] = []
    for name in files:
        chunks += split(_read(name), name)
    return chunks


def _read(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read(MAX_CHARACTERS + 1)
        with Path(name).open(encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CtlError(CtlCode.FILE, f"-f {name}: cannot be read: {why}") from error


def _pairs(text: str | None) -> Mapping[str, str] | None:
    if text is None:
        return None
    found = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise bad_argument(f"--namespace-labels {item!r}: written KEY=VALUE,KEY=VALUE")
        found[key] = value
    return found


def _written(chunks: Sequence[Chunk]) -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for chunk in chunks:
        data = chunk.data if isinstance(chunk.data, dict) else {}
        listed = data.get("items") if str(data.get("kind", "")).endswith("List") else None
        for item in listed if isinstance(listed, list) else [data]:
            if isinstance(item, dict) and item.get("kind") == "Namespace":
                meta = item.get("metadata")
                if isinstance(meta, dict) and _text_maps(meta):
                    found[str(meta.get("name"))] = item
    return found


def _text_maps(meta: Mapping[str, Any]) -> bool:
    maps = [meta.get("labels") or {}, meta.get("annotations") or {}]
    return all(isinstance(m, dict) and all(isinstance(v, str) for v in m.values()) for m in maps)


# --- commands ----------------------------------------------------------------------------------------


def run_inject(options: argparse.Namespace, screen: Screen) -> int:
    """Put sidecars in."""
    chunks = read_files(options.files)
    setting = setting_of(options, chunks, connect(options) if options.cluster else None)

    def change(template: Template, place: str) -> tuple[Mapping[str, Any], Verdict]:
        result = setting.inject(template)
        decision = result.decision
        word = "unchanged"
        if decision.outcome is Outcome.DENY:
            word = "refused"
        elif result.patch:
            word = "injected"
        verdict = Verdict(
            place=place,
            kind=template.kind,
            name=f"{template.namespace or setting.namespace}/{template.name}",
            word=word,
            code=decision.reason,
            message=decision.message,
            problems=result.problems if len(result.problems) > 1 else (),
            warnings=() if word == "refused" else result.warnings,
            changes=result.mutations,
            patch=result.patch,
        )
        return (apply_patch(template.pod, result.patch) if result.patch else template.pod), verdict

    return _run(options, screen, chunks, change, "kubectl apply -f - (pipe this command into it)")


def run_uninject(options: argparse.Namespace, screen: Screen) -> int:
    """Take sidecars out."""

    def change(template: Template, place: str) -> tuple[Mapping[str, Any], Verdict]:
        try:
            pod = uninject(template.pod)
        except ValueError as error:  # an annotation that we did not write
            raise CtlError(OfflineCode.UNREADABLE, f"{place}: {error}") from error
        had = pod != template.pod
        verdict = Verdict(
            place=place,
            kind=template.kind,
            name="/".join(filter(None, (template.namespace, template.name))),
            word="uninjected" if had else "unchanged",
            code=OfflineCode.UNINJECTED if had else OfflineCode.NOT_INJECTED,
            message="the sidecar is taken out" if had else "it has no sidecar of Gatehouse",
        )
        return (pod if had else template.pod), verdict

    return _run(options, screen, read_files(options.files), change, "")


Change = Callable[[Template, str], tuple[Mapping[str, Any], Verdict]]


@dataclass(frozen=True, slots=True)
class _Done:
    chunk: Chunk
    data: Any
    verdicts: tuple[Verdict, ...]

    @property
    def changed(self) -> bool:
        return self.data is not self.chunk.data

    @property
    def text(self) -> str:
        return changed_text(self.chunk, self.data) if self.changed else self.chunk.text


def _run(
    options: argparse.Namespace, screen: Screen, chunks: Sequence[Chunk], change: Change, next_step: str
) -> int:
    done = [_one(chunk, change) for chunk in chunks]
    verdicts = [verdict for item in done for verdict in item.verdicts]
    for verdict in verdicts:
        if not options.quiet or verdict.word != "unchanged" or verdict.warnings:
            _tell(screen, verdict)
    words = [verdict.word for verdict in verdicts]
    refused = words.count("refused")
    summary = counted(
        (words.count(word), text)
        for word, text in (
            ("injected", "injected"),
            ("uninjected", "uninjected"),
            ("unchanged", "left alone"),
            ("refused", "refused"),
        )
    )
    if refused:
        screen.remark(f"{summary}; nothing is printed", Colour.RED)
        screen.remark(
            'next: correct what is refused, or opt out with the label sidecar.istio.io/inject: "false"'
        )
        return EXIT_PROBLEM
    _print(options, screen, done)
    screen.remark(summary)
    if next_step and "injected" in words and not options.diff and screen.out.isatty():
        screen.remark(f"next: {next_step}")
    return EXIT_OK


def _one(chunk: Chunk, change: Change) -> _Done:
    verdicts: list[Verdict] = []

    def record(template: Template) -> Mapping[str, Any]:
        try:
            pod, verdict = change(template, chunk.place)
        except podjson.PodError as error:
            where = f"{template.kind} {template.name}".strip()
            raise CtlError(podjson.PodCode.SHAPE, f"{chunk.place}: {where}: {error.public}") from error
        except MeshError as error:
            if isinstance(error, CtlError):
                raise
            raise CtlError(
                OfflineCode.UNREADABLE, f"{chunk.place}: {error.public}", category=error.category
            ) from error
        verdicts.append(verdict)
        return pod

    data = workloads.transform(chunk.data, record)
    if not verdicts and isinstance(chunk.data, dict):
        meta = chunk.data.get("metadata")
        meta = meta if isinstance(meta, dict) else {}
        verdicts.append(
            Verdict(
                place=chunk.place,
                kind=str(chunk.data.get("kind") or "object"),
                name="/".join(str(meta[key]) for key in ("namespace", "name") if meta.get(key)),
                word="unchanged",
                code=Reason.NOT_APPLICABLE,
                message="it has no pods",
            )
        )
    return _Done(chunk, data, tuple(verdicts))


_COLOURS: Final = {
    "injected": Colour.GREEN,
    "uninjected": Colour.GREEN,
    "refused": Colour.RED,
}


def _tell(screen: Screen, verdict: Verdict) -> None:
    what = f"{verdict.place}: {verdict.kind.lower()} {verdict.name}".rstrip()
    screen.remark(
        f"{what}: {verdict.word}: {' '.join(verdict.message.split())} [{verdict.code}]",
        _COLOURS.get(verdict.word),
    )
    for problem in verdict.problems:
        screen.remark(wrapped(problem, first="  - ", rest="    "))
    for warning in verdict.warnings:
        screen.remark(
            wrapped(warning.removeprefix("gatehouse: "), first="  warning: ", rest="    "), Colour.YELLOW
        )


def _print(options: argparse.Namespace, screen: Screen, done: Sequence[_Done]) -> None:
    if options.diff and options.output == "json":
        screen.say_json([verdict.to_json() for item in done for verdict in item.verdicts])
        return
    if options.diff:
        for item in done:
            if item.changed:
                _print_diff(screen, item)
    elif options.output == "json":
        for item in done:
            if item.data is not None:
                screen.say_json(item.data)
    else:
        for text in join((item.chunk.source, item.text) for item in done):
            screen.out.write(text)


def _print_diff(screen: Screen, item: _Done) -> None:
    before, after = (dump(data).splitlines() for data in (item.chunk.data, item.data))
    name = ", ".join(f"{v.kind.lower()}/{v.name}" for v in item.verdicts if v.word != "unchanged")
    for line in difflib.unified_diff(before, after, name, f"{name} (as printed without --diff)", lineterm=""):
        colour = {"+": Colour.GREEN, "-": Colour.RED, "@": Colour.DIM}.get(line[:1])
        cut = line if len(line) <= _MAX_DIFF_LINE else f"{line[:_MAX_DIFF_LINE]} ({len(line)} characters)"
        screen.say(screen.paint(cut, colour))
