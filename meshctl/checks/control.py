"""After the installation: the control plane, its webhook, the node agents, the roots."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from mesh.errors import MeshError
from mesh.kube.api import KubeCode, KubeError
from mesh.x509.certs import CertFields, read_certificate
from mesh.x509.pem import decode_certificates
from meshctl.checks.before import DRIVER, ROOTS, is_linux, is_ready
from meshctl.checks.rows import Row, View, fail, many, ok, skip, warn
from meshctl.cluster import PART_OF, VALIDATORS, is_ours, labels_of, name_of, namespace_of
from meshctl.sidecars import status_of

COMPONENT: Final = "app.kubernetes.io/component"
AGENTS: Final = f"{PART_OF},{COMPONENT}=nodeagent"
CAPTURE: Final = f"{PART_OF},{COMPONENT}=capture"
ROOT_KEY: Final = "root-cert.pem"
_ROTATION: Final = "meshctl ca status; docs/rotation.md"
_SOON: Final = dt.timedelta(days=30)
_ROOTLESS: Final = frozenset({"kube-public", "kube-node-lease", "local-path-storage"})  # without workloads
_NEEDED: Final = ("ca", "injector", "upkeep")


def installed(view: View) -> Iterator[Row]:
    """The webhook configuration and the settings of the injector are there."""
    found = view.installed
    if found.problem:
        yield fail("installed", f"settings cannot be read: {found.problem}", "helm upgrade, then check again")
    else:
        version = found.config.injection.version if found.config else ""
        yield ok("installed", f"Gatehouse {version} in namespace {found.namespace}")


def deployments(view: View) -> Iterator[Row]:
    """Every process has all its replicas."""
    namespace = view.installed.namespace
    items = view.cluster.items(f"/apis/apps/v1/namespaces/{namespace}/deployments", PART_OF)
    by_component = {labels_of(item).get(COMPONENT, name_of(item)): item for item in items}
    missing = [c for c in _NEEDED if c not in by_component]
    if missing:
        yield fail("deployments", "deployments are missing", "helm upgrade", missing)
    for component, item in sorted(by_component.items()):
        wanted = int((item.get("spec") or {}).get("replicas", 1))
        ready = int((item.get("status") or {}).get("readyReplicas") or 0)
        row = f"deployment-{component}"
        if ready >= wanted > 0:
            yield ok(row, f"{name_of(item)}: {ready} of {wanted} ready")
        else:
            tell = warn if ready else fail
            why = _trouble(view, namespace, component)
            yield tell(
                row,
                f"{name_of(item)}: {ready} of {wanted} ready{why}",
                f"kubectl -n {namespace} describe deployment {name_of(item)}"
                f"; kubectl -n {namespace} logs deployment/{name_of(item)}",
            )


def logs_of(view: View, component: str) -> str:
    """What shows the log of a process."""
    found = view.installed
    prefix = found.service.removesuffix("-injector") or "gatehouse"
    return f"kubectl -n {found.namespace} logs deployment/{prefix}-{component}"


def _trouble(view: View, namespace: str, component: str) -> str:
    """Why the first pod that is not ready is not."""
    selector = f"{PART_OF},{COMPONENT}={component}"
    for pod in view.cluster.items(f"/api/v1/namespaces/{namespace}/pods", selector):
        status = pod.get("status") or {}
        for container in (
            *(status.get("initContainerStatuses") or ()),
            *(status.get("containerStatuses") or ()),
        ):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") and waiting["reason"] != "PodInitializing":
                return f" ({name_of(pod)}: {container.get('name')}: {waiting['reason']})"
        for condition in status.get("conditions") or ():
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return f" ({name_of(pod)}: {str(condition.get('message'))[:200]})"
    return ""


# --- roots ---------------------------------------------------------------------------------------------


def roots(view: View) -> Iterator[Row]:
    """Every namespace has the same roots, and they will be valid for a while."""
    namespace = view.installed.namespace
    found = {
        namespace_of(item): str((item.get("data") or {}).get(ROOT_KEY) or "").strip()
        for item in view.cluster.items("/api/v1/configmaps", fields=f"metadata.name={ROOTS}")
    }
    own = found.get(namespace, "")
    if not own:
        yield fail(
            "roots",
            f"ConfigMap {namespace}/{ROOTS} is missing or empty: nobody can verify the authority",
            logs_of(view, "ca"),
        )
        return
    yield from _lifetime(view, own)
    alive = [n for n, item in view.cluster.namespaces().items() if _is_active(item) and n not in _ROOTLESS]
    different = sorted(n for n in alive if found.get(n, "") != own)
    if different:
        yield fail(
            "roots",
            f"{many(len(different), 'namespace')} with other roots than {namespace}, or none",
            f"the authority repairs them within seconds; if not: {logs_of(view, 'ca')}",
            different,
        )
    else:
        yield ok("roots", f"{many(len(alive), 'namespace')} with the same roots")


def _lifetime(view: View, text: str) -> Iterator[Row]:
    now = view.cluster.local_now()
    certificates, problem = read_pem(text)
    if problem:
        yield fail("root-lifetime", f"the roots cannot be read: {problem}", "restart the authority")
        return
    last = max(c.not_after for c in certificates)
    left = last - now
    day = last.strftime("%Y-%m-%d")
    if left <= dt.timedelta(0):
        yield fail("root-lifetime", f"the root ended on {day}: no certificate is valid", _ROTATION)
    elif left < _SOON:
        yield warn("root-lifetime", f"the root ends on {day}, in {left.days} days", _ROTATION)
    else:
        yield ok("root-lifetime", f"the root is valid until {day}")


def read_pem(text: str) -> tuple[Sequence[CertFields], str]:
    """The certificates of a PEM text, and why they cannot be read."""
    try:
        return [read_certificate(der) for der in decode_certificates(text)], ""
    except MeshError as error:
        return (), error.public


def _is_active(namespace: Mapping[str, Any]) -> bool:
    return bool((namespace.get("status") or {}).get("phase", "Active") == "Active")


# --- webhook -------------------------------------------------------------------------------------------


def ca_bundle(view: View) -> Iterator[Row]:
    """The API server knows the roots that the webhooks' certificate comes from."""
    found = view.installed
    own = view.cluster.get(f"/api/v1/namespaces/{found.namespace}/configmaps/{ROOTS}") or {}
    current, _ = read_pem(str((own.get("data") or {}).get(ROOT_KEY) or ""))
    roots_now = {certificate.der for certificate in current}
    empty, wrong = [], []
    total = 0
    validators = [item for item in view.cluster.items(VALIDATORS) if is_ours(item)]
    for configuration in (*found.webhooks, *validators):
        for webhook in configuration.get("webhooks") or ():
            total += 1
            name = f"{name_of(configuration)}: {webhook.get('name')}"
            raw = (webhook.get("clientConfig") or {}).get("caBundle")
            if not raw:
                empty.append(name)
                continue
            certificates, problem = _decoded(str(raw))
            if problem or (roots_now and not roots_now & {c.der for c in certificates}):
                wrong.append(f"{name}{': ' + problem if problem else ''}")
    logs = logs_of(view, "upkeep")
    if empty:
        yield fail(
            "ca-bundle",
            "webhooks have no caBundle: new pods are refused where sidecars are asked for, and so are"
            " policies",
            logs,
            empty,
        )
    if wrong:
        yield fail("ca-bundle", "webhooks have a caBundle that is not the current root", logs, wrong)
    if not empty and not wrong:
        yield ok("ca-bundle", f"{many(total, 'webhook')} with the current root as caBundle")


def _decoded(raw: str) -> tuple[Sequence[CertFields], str]:
    try:
        text = base64.b64decode(raw, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return (), "not base64 of a PEM text"
    return read_pem(text)


def webhook_call(view: View) -> Iterator[Row]:
    """A dry run of a new pod: the API server really calls the webhook, and verifies its certificate."""
    namespace, labels = _place(view)
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "meshctl-check-", "labels": labels},
        "spec": {"containers": [{"name": "app", "image": "registry.invalid/app"}]},
    }
    try:
        pod = view.cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", body, dryRun="All")
    except KubeError as error:
        yield from _call_failed(view, namespace, error)
        return
    if status_of(pod) is not None:
        yield ok("webhook-call", f"a new pod in {namespace} gets a sidecar (dry run)")
    else:
        yield fail(
            "webhook-call",
            f"a new pod in {namespace} that asks for a sidecar gets none (dry run)",
            f"{logs_of(view, 'injector')}; meshctl explain inject -f FILE",
        )


def _place(view: View) -> tuple[str, Mapping[str, str]]:
    """A namespace, and labels of a pod in it, for which a webhook must be called."""
    config = view.installed.config
    chosen = config.injection.selection if config is not None else None
    revisions = {chosen.revision, *chosen.tags} if chosen is not None else {"default"}
    for name, item in sorted(view.cluster.namespaces().items()):
        labels = labels_of(item)
        asks = labels.get("istio-injection") == "enabled" and "default" in revisions
        restricted = labels.get("pod-security.kubernetes.io/enforce", "privileged") != "privileged"
        if asks and not restricted and _is_active(item):
            return name, {"sidecar.istio.io/inject": "true"}
    wanted = {"sidecar.istio.io/inject": "true"}
    if "default" not in revisions:
        wanted["istio.io/rev"] = min(revisions)
    return "default", wanted


def _call_failed(view: View, namespace: str, error: KubeError) -> Iterator[Row]:
    text = error.public
    if error.code is KubeCode.UNREACHABLE:
        raise error
    if "failed calling webhook" in text or "failed to call webhook" in text:
        guilty = "upkeep" if "x509" in text or "certificate" in text else "injector"
        yield fail(
            "webhook-call",
            f"the API server cannot call the webhook: {text}",
            logs_of(view, guilty),
        )
    elif error.code is KubeCode.FORBIDDEN and "cannot create resource" in text:
        yield from _proxy_call(view)
    elif "admission webhook" in text and "gatehouse" in text:
        yield warn(
            "webhook-call",
            f"the webhook answers, and refuses a pod in {namespace}: {text}",
            "see its message",
        )
    else:
        yield warn(
            "webhook-call", f"the dry run of a pod in {namespace} is refused: {text}", "check that namespace"
        )


def _proxy_call(view: View) -> Iterator[Row]:
    """Second best, for users who may not create pods: no certificate is verified on this way."""
    found = view.installed
    path = f"/api/v1/namespaces/{found.namespace}/services/https:{found.service}:443/proxy/readyz"
    try:
        view.cluster.api.get(path)
    except KubeError as error:
        if error.code is KubeCode.FORBIDDEN:
            yield skip("webhook-call", "you may neither create pods nor proxy to services", "ask who may")
            return
        if error.code is not KubeCode.RESPONSE:  # an answer in plain text is one
            yield fail(
                "webhook-call", f"the webhook does not answer: {error.public}", "check the injector's pods"
            )
            return
    yield skip(
        "webhook-call",
        "the webhook answers; its certificate is not checked: you may not create pods (dry run)",
    )


# --- nodes ---------------------------------------------------------------------------------------------


def csi_driver(view: View) -> Iterator[Row]:
    """The CSI driver is as the agent needs it."""
    item = view.cluster.get(f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}")
    spec = (item or {}).get("spec") or {}
    audiences = [r.get("audience") for r in spec.get("tokenRequests") or ()]
    if item is None:
        yield fail("csi-driver", f"CSIDriver {DRIVER} is missing: injected pods never start", "helm upgrade")
    elif "istio-ca" not in audiences:
        yield fail(
            "csi-driver",
            f"CSIDriver {DRIVER} has no tokenRequests for istio-ca: no pod gets an identity",
            "switch the feature gate CSIServiceAccountToken on (API server, kubelets); helm upgrade",
        )
    elif spec.get("requiresRepublish") is not True:
        yield fail(
            "csi-driver",
            f"CSIDriver {DRIVER} has no requiresRepublish: tokens are never renewed",
            "helm upgrade",
        )
    else:
        yield ok("csi-driver", f"{DRIVER} gets fresh tokens of pods")


def node_agents(view: View) -> Iterator[Row]:
    """Each Linux node has a ready agent, which the kubelet knows."""
    namespace = view.installed.namespace
    agents = view.cluster.items(f"/api/v1/namespaces/{namespace}/pods", AGENTS)
    ready = {str((p.get("spec") or {}).get("nodeName")) for p in agents if is_pod_ready(p)}
    linux = [name_of(n) for n in view.cluster.items("/api/v1/nodes") if is_linux(n) and is_ready(n)]
    without = sorted(name for name in linux if name not in ready)
    if without:
        injected = {
            str((p.get("spec") or {}).get("nodeName"))
            for p in view.cluster.items("/api/v1/pods")
            if status_of(p) is not None
        }
        urgent = [name for name in without if name in injected]
        tell = fail if urgent or len(without) == len(linux) else warn
        yield tell(
            "node-agents",
            f"{len(without)} of {many(len(linux), 'node')} without a ready agent: "
            + (f"{len(urgent)} of them with injected pods" if urgent else "injected pods cannot start there"),
            f"kubectl -n {namespace} get pods -o wide -l {COMPONENT}=nodeagent",
            without,
        )
    else:
        yield ok("node-agents", f"{many(len(linux), 'node')} with a ready agent")
    known = {
        name_of(item)
        for item in view.cluster.items("/apis/storage.k8s.io/v1/csinodes")
        if any(d.get("name") == DRIVER for d in (item.get("spec") or {}).get("drivers") or ())
    }
    unregistered = sorted(name for name in linux if name in ready and name not in known)
    if unregistered:
        yield fail(
            "node-drivers",
            f"the kubelets of {many(len(unregistered), 'node')} do not know the driver {DRIVER}",
            f"is nodeagent.kubeletDir right?; kubectl -n {namespace} logs -l {COMPONENT}=nodeagent",
            unregistered,
        )


def capture_agents(view: View) -> Iterator[Row]:
    """Where nodes capture: each Linux node has an agent that writes the rules."""
    config = view.installed.config
    if config is None or not config.injection.node_capture:
        return
    namespace = view.installed.namespace
    agents = view.cluster.items(f"/api/v1/namespaces/{namespace}/pods", CAPTURE)
    ready = {str((p.get("spec") or {}).get("nodeName")) for p in agents if is_pod_ready(p)}
    linux = [name_of(n) for n in view.cluster.items("/api/v1/nodes") if is_linux(n) and is_ready(n)]
    without = sorted(name for name in linux if name not in ready)
    if without:
        yield fail(
            "capture-agents",
            f"{len(without)} of {many(len(linux), 'node')} without a ready capture agent: injected pods"
            " cannot start there",
            f"kubectl -n {namespace} get pods -o wide -l {COMPONENT}=capture; kubectl -n {namespace} logs -l"
            f" {COMPONENT}=capture --all-containers",
            without,
        )
    else:
        yield ok("capture-agents", f"{many(len(linux), 'node')} write capture rules for their pods")


def is_pod_ready(pod: Mapping[str, Any]) -> bool:
    """The pod's condition Ready is True."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
