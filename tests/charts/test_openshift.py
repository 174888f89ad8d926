"""The profile for OpenShift, judged by the documented rules of SecurityContextConstraints.

No OpenShift is here: this cannot show that it runs, only that nothing asks for what the constraints refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.fakes.helm import CHART, ROOT, Rendered, render
from tests.fakes.injector_pods import CLASSIC, NATIVE, a_pod, injected

RESTRICTED_V2: dict[str, Any] = {
    "allowHostDirVolumePlugin": False,
    "allowPrivilegeEscalation": False,
    "allowedCapabilities": ["NET_BIND_SERVICE"],
    "requiredDropCapabilities": ["ALL"],
    "readOnlyRootFilesystem": False,
    "runAsUser": {"type": "MustRunAsRange"},
    "fsGroup": {"type": "MustRunAs"},
    "seLinuxContext": {"type": "MustRunAs"},
    "seccompProfiles": ["runtime/default"],
    "volumes": [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ],
}
"""What every service account may use, as far as it matters here; its users and groups are the namespace's."""
REQUIRED = {
    "allowHostDirVolumePlugin", "allowHostIPC", "allowHostNetwork", "allowHostPID", "allowHostPorts",
    "allowPrivilegedContainer", "allowedCapabilities", "defaultAddCapabilities", "priority",
    "readOnlyRootFilesystem", "requiredDropCapabilities", "volumes",
}  # fmt: skip
"""Fields that the kind's definition requires."""
PROFILE = "security.openshift.io/csi-ephemeral-volume-profile"


def refusals(constraints: dict[str, Any], spec: dict[str, Any]) -> set[str]:
    """Why these constraints do not admit a pod; empty when they do."""
    pod = spec.get("securityContext", {})
    kinds = {kind for volume in spec.get("volumes", ()) for kind in volume} - {"name"}
    found = {f"volume {kind}" for kind in kinds - set(constraints["volumes"])}
    if "hostPath" in kinds and not constraints["allowHostDirVolumePlugin"]:
        found.add("volume hostPath")
    found |= {name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)}
    if constraints["fsGroup"]["type"] == "MustRunAs" and "fsGroup" in pod:
        found.add(f"fsGroup {pod['fsGroup']}")
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        context = {**pod, **container.get("securityContext", {})}
        found |= {reason for reason, refused in _judged(constraints, context) if refused}
    return found


def _judged(constraints: dict[str, Any], context: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Each rule about a container, and whether it refuses this one."""
    user, users = context.get("runAsUser"), constraints["runAsUser"]
    fixed = {"MustRunAs": users.get("uid"), "MustRunAsRange": None}
    yield f"runAsUser {user}", users["type"] in fixed and user != fixed[users["type"]]
    chosen = bool(context.get("seLinuxOptions"))
    yield "seLinuxOptions", chosen and constraints["seLinuxContext"]["type"] != "RunAsAny"
    yield "privileged", bool(context.get("privileged"))
    yield "allowPrivilegeEscalation", context.get("allowPrivilegeEscalation") is not False
    writes = not context.get("readOnlyRootFilesystem")
    yield "readOnlyRootFilesystem", constraints["readOnlyRootFilesystem"] and writes
    yield "seccompProfile", context.get("seccompProfile", {}).get("type") not in {None, "RuntimeDefault"}
    capabilities = context.get("capabilities", {})
    for name in capabilities.get("add", ()):
        yield f"capability {name}", name not in constraints["allowedCapabilities"]
    for name in constraints["requiredDropCapabilities"]:
        yield f"{name} not dropped", name not in capabilities.get("drop", ())


@pytest.fixture(scope="module")
def chart() -> Rendered:
    return render(files=[CHART / "values-openshift.yaml"], kube="1.26.0")


def _pod(chart: Rendered, kind: str, name: str) -> dict[str, Any]:
    spec = chart.one(kind, name)["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


@pytest.mark.parametrize("component", ["ca", "injector", "upkeep"])
def test_the_control_plane_is_admitted_by_what_every_account_may_use(chart: Rendered, component: str) -> None:
    assert not refusals(RESTRICTED_V2, _pod(chart, "Deployment", f"gatehouse-{component}"))
    usual = _pod(render(), "Deployment", f"gatehouse-{component}")
    assert {"runAsUser 65532", "fsGroup 65532"} <= refusals(RESTRICTED_V2, usual)
    assert _pod(chart, "Deployment", f"gatehouse-{component}")["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_node_agents_have_constraints_of_their_own(chart: Rendered) -> None:
    found = chart.one("SecurityContextConstraints", "gatehouse-nodeagent")
    assert set(found) >= REQUIRED
    agent = _pod(chart, "DaemonSet", "gatehouse-nodeagent")
    assert not refusals(found, agent)
    assert {"volume hostPath", "runAsUser 0", "seLinuxOptions"} <= refusals(RESTRICTED_V2, agent)
    assert agent["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    assert {kind for volume in agent["volumes"] for kind in volume} - {"name"} == set(found["volumes"])
    assert found["users"] == ["system:serviceaccount:istio-system:gatehouse-nodeagent"]
    assert found["groups"] == []


def test_restricted_namespaces_may_use_the_driver(chart: Rendered) -> None:
    assert chart.one("CSIDriver", "csi.gatehouse.dev")["metadata"]["labels"][PROFILE] == "restricted"
    assert PROFILE not in render().one("CSIDriver", "csi.gatehouse.dev")["metadata"]["labels"]
    assert not render().all("SecurityContextConstraints")


def test_dns_may_be_asked_where_its_pods_listen() -> None:
    egress = {"networkPolicy": {"egress": {"enabled": True}}}
    found = render(files=[CHART / "values-openshift.yaml"], values=egress)
    for policy in found.all("NetworkPolicy"):
        ports = [(port["port"], port["protocol"]) for port in policy["spec"]["egress"][0]["ports"]]
        assert ports == [(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")]


def _example() -> dict[str, Any]:
    text = (ROOT / "docs" / "install.md").read_text()
    (found,) = re.findall(r"```yaml\n(apiVersion: security\.openshift\.io.*?)```", text, re.DOTALL)
    example = yaml.safe_load(found)
    assert isinstance(example, dict)
    return example


@pytest.mark.parametrize("features", [CLASSIC, NATIVE], ids=["classic", "native"])
def test_the_documented_constraints_admit_injected_pods(features: Any) -> None:
    assert set(_example()) >= REQUIRED
    spec = injected(a_pod(), features)["spec"]
    ours = ("istio-init", "istio-proxy")
    spec = {
        **spec,
        "containers": [item for item in spec["containers"] if item["name"] in ours],
        "initContainers": [item for item in spec["initContainers"] if item["name"] in ours],
    }
    assert not refusals(_example(), spec)
    assert {"capability NET_ADMIN", "runAsUser 0"} <= refusals(RESTRICTED_V2, spec)
    without = injected(a_pod(annotations={"sidecar.istio.io/interceptionMode": "NONE"}), features)["spec"]
    assert "istio-init" not in {item["name"] for item in without.get("initContainers", ())}


def test_numbers_of_users_can_be_chosen() -> None:
    users = {"runAsUser": 1_000_650_000, "runAsGroup": 0, "fsGroup": 1_000_650_000}
    context = _pod(render(values={"podSecurity": users}), "Deployment", "gatehouse-ca")["securityContext"]
    assert {key: context[key] for key in users} == users
