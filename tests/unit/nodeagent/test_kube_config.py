"""Settings of mode kubernetes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.meshconfig import MeshConfig, OutboundPolicy
from mesh.settings import SettingsCode, SettingsError
from mesh.spiffe import TrustDomain
from nodeagent.config import ENV_PREFIX, AgentSettings, Mode, ServiceScope, load_settings

CA = "ca: {address: 'ca:15012', root_file: root.pem}\n"
GOOD = f"mode: kubernetes\n{CA}kubernetes: {{node_name: node1}}\n"


def load(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> AgentSettings:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    return load_settings(file, env or {}, {})


def test_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    kube = found.kubernetes
    assert (found.mode, found.directory, kube.kubeconfig) == (Mode.KUBERNETES, None, None)
    assert (kube.namespace, kube.cluster_domain) == ("istio-system", "cluster.local")
    assert (kube.driver_name, kube.audience) == ("csi.gatehouse.dev", "istio-ca")
    assert (kube.kubelet_dir, kube.state_dir) == (Path("/var/lib/kubelet"), Path("/run/gatehouse/agent"))
    assert (kube.services, kube.service_limit) == (ServiceScope.ALL, 1000)
    assert found.mesh.config() == MeshConfig(trust_domain=TrustDomain("cluster.local")), "as in file mode"


def test_the_node_name_comes_from_the_environment(tmp_path: Path) -> None:
    env = {f"{ENV_PREFIX}KUBERNETES__NODE_NAME": "node7"}
    assert load(tmp_path, f"mode: kubernetes\n{CA}", env).kubernetes.node_name == "node7"


def test_mesh_options(tmp_path: Path) -> None:
    text = (
        "mesh: {trust_domain: mesh.example, trust_domain_aliases: [old.example], "
        "outbound_policy: REGISTRY_ONLY, drain_seconds: 5}\n"
    )
    mesh = load(tmp_path, GOOD + text).mesh.config()
    assert mesh.trust_domains == (TrustDomain("mesh.example"), TrustDomain("old.example"))
    assert (mesh.outbound_policy, mesh.drain_seconds) == (OutboundPolicy.REGISTRY_ONLY, 5)


BAD = [
    ("no-node-name", f"mode: kubernetes\n{CA}", SettingsCode.MISSING, "KUBERNETES__NODE_NAME"),
    ("no-directory", CA, SettingsCode.MISSING, "directory"),
    ("mode", GOOD.replace("kubernetes\n", "cluster\n", 1), SettingsCode.TYPE, "files, kubernetes"),
    ("services", GOOD.replace("node1", "node1, services: some"), SettingsCode.TYPE, "all, namespace"),
    ("limit", GOOD.replace("node1", "node1, service_limit: 0"), SettingsCode.VALUE, "1 to 20000"),
    ("typo", GOOD.replace("node1", "node1, kublet_dir: /x"), SettingsCode.UNKNOWN, "kubelet_dir"),
    ("trust-domain", f"{GOOD}mesh: {{trust_domain: 'Mesh Example'}}\n", SettingsCode.VALUE, "lower case"),
]


@pytest.mark.parametrize(("text", "code", "message"), [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_refusals(tmp_path: Path, text: str, code: SettingsCode, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert (caught.value.code, message in caught.value.public) == (code, True), caught.value.public
