"""The cluster as meshctl sees it: a connection, lists that are read once, and the installation in it."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mesh.errors import Category
from mesh.kube.api import KubeApi, KubeCode, KubeError
from mesh.kube.discovery import Capabilities, discover
from meshctl.errors import CtlCode, CtlError, bad_argument, not_found

if TYPE_CHECKING:
    from injector.config import InjectorConfig
    from mesh.kube.access import Access

Json = dict[str, Any]

WEBHOOKS: Final = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
VALIDATORS: Final = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
OURS: Final = "app=gatehouse"
"""Label of the webhook configurations that are ours."""
PART_OF: Final = "app.kubernetes.io/part-of=gatehouse"
"""Label of the other objects that are ours."""
CONFIG_KEY: Final = "injector.yaml"
MAX_ITEMS: Final = 100_000
_PAGE: Final = "500"


@dataclass(slots=True)
class Cluster:
    """An API server, with every list read at most once.

    Attributes:
        namespace: of the kubeconfig's context, for commands without `-n`.
        mesh_namespace: of Gatehouse.
        local_now: the time here.
    """

    api: KubeApi
    namespace: str
    mesh_namespace: str
    local_now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    _lists: dict[tuple[str, str, str], list[Json] | KubeError] = field(default_factory=dict)
    _capabilities: Capabilities | None = None

    def capabilities(self) -> Capabilities:
        """What the server can do, asked once.

        Raises:
            KubeError: it does not answer.
        """
        if self._capabilities is None:
            self._capabilities = discover(self.api)
        return self._capabilities

    def items(self, path: str, selector: str = "", fields: str = "") -> list[Json]:
        """All items of a collection, or those that a label and a field selector choose.

        Raises:
            KubeError: not allowed, no answer, or more than 100 000 items.
        """
        key = (path, selector, fields)
        if key not in self._lists:
            try:
                self._lists[key] = self._pages(path, selector, fields)
            except KubeError as error:
                self._lists[key] = error
        found = self._lists[key]
        if isinstance(found, KubeError):
            raise found
        return found

    def _pages(self, path: str, selector: str, fields: str) -> list[Json]:
        items: list[Json] = []
        query = {"limit": _PAGE}
        query |= {"labelSelector": selector} if selector else {}
        query |= {"fieldSelector": fields} if fields else {}
        while True:
            page = self.api.get(path, **query)
            found = page.get("items") or [] if isinstance(page, dict) else None
            if not isinstance(found, list) or len(items) + len(found) > MAX_ITEMS:
                raise KubeError(
                    KubeCode.RESPONSE,
                    f"{path}: not a list of at most {MAX_ITEMS} objects",
                    category=Category.UNAVAILABLE,
                )
            items += found
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return items
            query["continue"] = str(more)

    def get(self, path: str) -> Json | None:
        """An object; None when there is none.

        Raises:
            KubeError: not allowed or no answer.
        """
        try:
            found = self.api.get(path)
        except KubeError as error:
            if error.code is KubeCode.NOT_FOUND:
                return None
            raise
        return dict(found) if isinstance(found, dict) else None

    def namespaces(self) -> Mapping[str, Json]:
        """All namespaces by name."""
        return {name_of(item): item for item in self.items("/api/v1/namespaces")}

    def labels_of_namespace(self, name: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Labels and annotations of a namespace.

        Raises:
            CtlError: there is no such namespace.
        """
        item = self.get(f"/api/v1/namespaces/{name}")
        if item is None:
            raise not_found(f"there is no namespace {name!r}; next: kubectl get namespaces")
        return labels_of(item), annotations_of(item)


@dataclass(frozen=True, slots=True)
class Installation:
    """Gatehouse as it is installed.

    Attributes:
        namespace: where its Service is.
        service: of the webhook; `SERVICE-config` is the ConfigMap with its settings.
        webhooks: configurations of the webhook.
        config: settings of the injector, None when they cannot be read; `problem` says why.
    """

    namespace: str
    service: str
    webhooks: tuple[Json, ...]
    config: InjectorConfig | None
    problem: str = ""


def find_installation(cluster: Cluster) -> Installation | None:
    """Look for the webhook configuration with our label; None when there is none.

    Raises:
        KubeError: not allowed or no answer.
    """
    ours = [item for item in cluster.items(WEBHOOKS) if is_ours(item)]
    if not ours:
        return None
    for item in ours:
        for webhook in item.get("webhooks") or ():
            service = (webhook.get("clientConfig") or {}).get("service") or {}
            if service:
                where, name = str(service.get("namespace")), str(service.get("name"))
                config, problem = _read_config(cluster, where, f"{name}-config")
                return Installation(where, name, tuple(ours), config, problem)
    return Installation(cluster.mesh_namespace, "", tuple(ours), None, "no webhook names a Service")


def installation(cluster: Cluster) -> tuple[Installation, InjectorConfig]:
    """The installation with its settings.

    Raises:
        CtlError: Gatehouse is not installed, or its settings cannot be read.
        KubeError: not allowed or no answer.
    """
    found = find_installation(cluster)
    if found is None:
        raise CtlError(
            CtlCode.NOT_INSTALLED,
            f"no webhook configuration has the label {OURS}: Gatehouse is not installed;"
            " next: meshctl check --pre",
            category=Category.NOT_FOUND,
        )
    if found.config is None:
        raise CtlError(CtlCode.SETTINGS, f"{found.problem}; next: meshctl check")
    return found, found.config


def _read_config(cluster: Cluster, namespace: str, name: str) -> tuple[InjectorConfig | None, str]:
    where = f"ConfigMap {namespace}/{name}"
    try:
        item = cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
    except KubeError as error:
        return None, f"{where}: {error.public}"
    text = ((item or {}).get("data") or {}).get(CONFIG_KEY)
    if not isinstance(text, str):
        return None, f"{where} has no {CONFIG_KEY}"
    with tempfile.TemporaryDirectory(prefix="meshctl-") as directory:
        path = Path(directory) / CONFIG_KEY
        path.write_text(text, encoding="utf-8")
        try:
            return load_config(path), ""
        except CtlError as error:
            return None, error.public.replace(str(path), f"{where}: {CONFIG_KEY}")


def load_config(path: Path | None) -> InjectorConfig:
    """Settings of the injector from a file; without one, the defaults.

    Raises:
        CtlError: with what is wrong.
    """
    from injector.config import load
    from mesh.errors import MeshError

    try:
        return load(path, {})  # not the environment: a pod's variables say nothing about this machine
    except MeshError as error:
        raise CtlError(CtlCode.SETTINGS, error.public) from error


def connect(options: argparse.Namespace) -> Cluster:
    """A connection as the options say.

    Raises:
        KubeError: no kubeconfig, or one that cannot be used.
    """
    from mesh.kube.client import KubeClient

    if not 0 < options.timeout <= 600:
        raise bad_argument(f"--timeout {options.timeout}: allowed are seconds from 0 to 600")
    api = KubeClient(
        _access(options),
        user_agent="meshctl",
        timeout=dt.timedelta(seconds=options.timeout),
    )
    options.at_exit.callback(api.close)
    namespace = getattr(options, "namespace", "") or _context_namespace(options)
    return Cluster(api, namespace, options.mesh_namespace)


def _access(options: argparse.Namespace) -> Access:
    from mesh.kube import access

    path = Path(options.kubeconfig) if options.kubeconfig else None
    if options.context:
        return access.from_kubeconfig(path or _kubeconfig_path(), options.context)
    return access.find(path)


def _kubeconfig_path() -> Path:
    given = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(given) if given else Path.home() / ".kube" / "config"


def _context_namespace(options: argparse.Namespace) -> str:
    """The namespace that kubectl would use."""
    import yaml

    path = Path(options.kubeconfig) if options.kubeconfig else _kubeconfig_path()
    if not path.is_file():
        return "default"  # in a pod
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    wanted = options.context or config.get("current-context")
    for item in config.get("contexts") or ():
        if item.get("name") == wanted:
            return str((item.get("context") or {}).get("namespace") or "default")
    return "default"


# --- reading objects -----------------------------------------------------------------------------------


def metadata_of(item: Mapping[str, Any]) -> Json:
    """`metadata`."""
    return item.get("metadata") or {}


def name_of(item: Mapping[str, Any]) -> str:
    """`metadata.name`."""
    return str(metadata_of(item).get("name") or "")


def namespace_of(item: Mapping[str, Any]) -> str:
    """`metadata.namespace`."""
    return str(metadata_of(item).get("namespace") or "")


def full_name(item: Mapping[str, Any]) -> str:
    """`namespace/name`."""
    return f"{namespace_of(item)}/{name_of(item)}"


def labels_of(item: Mapping[str, Any]) -> Mapping[str, str]:
    """`metadata.labels`."""
    return metadata_of(item).get("labels") or {}


def annotations_of(item: Mapping[str, Any]) -> Mapping[str, str]:
    """`metadata.annotations`."""
    return metadata_of(item).get("annotations") or {}


def is_ours(item: Mapping[str, Any]) -> bool:
    """A webhook configuration of Gatehouse."""
    return labels_of(item).get("app") == "gatehouse"
