"""Each rendered settings file is read by the process that it is for: chart and processes cannot drift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import ca.config
import injector.config
import nodeagent.config
from ca.keystore_secret import SECRET_TYPE
from injector import capture_worker
from mesh import settings
from mesh.settings_values import parse_duration
from nodeagent.core.kube_world import KEY_SETS_NAME
from tests.fakes.helm import CHART, Rendered, render

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "changed": {
        "trustDomain": "prod.example",
        "log": {"level": "debug", "format": "text"},
        "metrics": {"tls": True},
        "image": {"registry": "registry.example.com/team", "tag": "1.2.3", "podPullSecrets": ["pull"]},
        "ca": {"config": {"issue": {"default_lifetime": "12h", "remembered_keys": 1_000_000}}},
        "injector": {
            "revision": "blue",
            "tags": ["stable"],
            "events": False,
            "excludedNamespaces": ["legacy"],
            "config": {
                "workers": 2,
                "injection": {
                    "defaults": {"sidecar.istio.io/proxyCPU": "50m"},
                    "selection": {"never": [{"matchLabels": {"app": "batch"}}]},
                },
            },
        },
        "upkeep": {"policyStatus": False},
        "capture": {"mode": "node"},
        "nodeagent": {"config": {"rotation": {"lifetime": "6h"}}},
    },
}


@pytest.fixture(params=sorted(VALUES))
def chart(request: pytest.FixtureRequest) -> tuple[str, Rendered]:
    return request.param, render(values=VALUES[request.param])


def _write(directory: Path, chart: Rendered, component: str) -> Path:
    file = directory / f"{component}.yaml"
    file.write_text(chart.setting_file(component))
    return file


def test_ca_reads_its_settings(chart: tuple[str, Rendered], tmp_path: Path) -> None:
    name, rendered = chart
    config = ca.config.load(_write(tmp_path, rendered, "ca"), {})
    changed = name == "changed"
    assert str(config.trust_domain) == ("prod.example" if changed else "cluster.local")
    assert config.token.audiences == ("istio-ca",)
    assert config.cluster.kubernetes
    assert config.cluster.namespace == "istio-system"
    assert rendered.one("ClusterRole", config.cluster.owner_cluster_role)
    assert rendered.one("Lease", config.cluster.lease)
    assert rendered.one("Secret", config.cluster.secret)["type"] == SECRET_TYPE
    grants = {grant.service_account: grant.dns for grant in config.serving_grants}
    webhook = injector.config.load(_write(tmp_path, rendered, "injector"), {})
    assert set(grants.pop("istio-system/gatehouse-injector")) == set(webhook.dns_names)
    others = {f"istio-system/gatehouse-{process}" for process in ("upkeep", "nodeagent", "capture")}
    assert set(grants) == (others if name == "changed" else set())
    assert config.log_level == ("debug" if changed else "info")
    assert config.log_json is not changed
    assert "gatehouse-ca.istio-system.svc" in config.serving.names
    assert (config.listen.plain is None) == changed
    if changed:
        assert config.issue.default_lifetime.total_seconds() == 12 * 3600
        assert config.issue.remembered_keys == 1_000_000  # not 1e+06, which Helm writes when asked wrongly


def test_injector_reads_its_settings(chart: tuple[str, Rendered], tmp_path: Path) -> None:
    name, rendered = chart
    config = injector.config.load(_write(tmp_path, rendered, "injector"), {})
    assert config.namespace == "istio-system"
    assert str(config.certificate.ca_address) == "gatehouse-ca.istio-system.svc:15012"
    assert config.dns_names[0] == "gatehouse-injector.istio-system.svc"
    selection = config.settings().selection
    assert rendered.one("Lease", config.upkeep.lease)
    assert rendered.one("ConfigMap", config.upkeep.jwks.config_map)
    assert config.upkeep.jwks.config_map == KEY_SETS_NAME
    assert rendered.one("ConfigMap", config.upkeep.nodes.config_map)
    assert config.upkeep.jwks.ca_file is None
    assert "istio-system" in selection.excluded_namespaces
    if name == "defaults":
        assert config.injection.proxy_image == "gatehouse/proxy:0.1.0"
        assert selection.revision == "default"
        assert config.events
        assert config.upkeep.policy_status
        assert not config.injection.node_capture
        return
    assert config.settings().node_capture
    assert config.injection.proxy_image == "registry.example.com/team/gatehouse/proxy:1.2.3"
    assert config.injection.image_pull_secrets == ("pull",)
    assert selection.revision == "blue"
    assert selection.tags == {"stable"}
    assert not config.events
    assert not config.upkeep.policy_status
    assert "legacy" in selection.excluded_namespaces
    assert config.workers == 2
    assert len(selection.never) == 1


@pytest.mark.parametrize(
    ("value", "native"), [("auto", None), ("true", True), (True, True), ("false", False), (False, False)]
)
def test_native_sidecars_for_all_pods(value: object, native: bool | None, tmp_path: Path) -> None:
    rendered = render(values={"injector": {"nativeSidecars": value}})
    config = injector.config.load(_write(tmp_path, rendered, "injector"), {})
    assert config.settings().defaults.native_sidecar is native


def test_nodeagent_reads_its_settings(chart: tuple[str, Rendered], tmp_path: Path) -> None:
    name, rendered = chart
    daemon = rendered.one("DaemonSet", "gatehouse-nodeagent")["spec"]["template"]["spec"]
    names = [item["name"] for item in daemon["containers"][0]["env"]]
    env = {name_: "node1" for name_ in names if name_.startswith(nodeagent.config.ENV_PREFIX)}
    config = nodeagent.config.load_settings(_write(tmp_path, rendered, "nodeagent"), env, {})
    assert config.mode is nodeagent.config.Mode.KUBERNETES
    assert (config.kubernetes.node_name, config.kubernetes.namespace) == ("node1", "istio-system")
    assert str(config.mesh.trust_domain) == ("prod.example" if name == "changed" else "cluster.local")
    driver = rendered.one("CSIDriver", config.kubernetes.driver_name)
    assert driver["spec"]["tokenRequests"][0]["audience"] == config.kubernetes.audience
    paths = {mount["mountPath"] for mount in daemon["containers"][0]["volumeMounts"]}
    assert f"{config.kubernetes.kubelet_dir}/pods" in paths
    assert str(config.kubernetes.state_dir.parent) in paths
    assert config.ca.address == "gatehouse-ca.istio-system.svc:15012"
    assert config.listen.port == 15014
    if name == "changed":
        assert config.rotation.lifetime is not None
        assert config.rotation.lifetime.total_seconds() == 6 * 3600


@pytest.mark.parametrize("component", ["ca", "injector", "nodeagent"])
def test_every_key_of_a_file_is_known(component: str) -> None:
    """The loaders refuse unknown keys, so this is about the test itself: it must see a drift."""
    data = yaml.safe_load(render().setting_file(component))
    data["no_such_setting"] = 1
    classes: dict[str, type[Any]] = {
        "ca": ca.config.CaConfig,
        "injector": injector.config.InjectorConfig,
        "nodeagent": nodeagent.config.AgentSettings,
    }
    known = {row.path.partition(".")[0] for row in settings.describe(classes[component])}
    assert set(data) - known == {"no_such_setting"}


def test_ports_of_the_settings_are_the_containers_ports(tmp_path: Path) -> None:
    rendered = render()
    ca_config = ca.config.load(_write(tmp_path, rendered, "ca"), {})
    assert ca_config.listen.mtls is not None
    assert ca_config.listen.plain is not None
    listen = ca_config.listen
    wanted = {listen.grpc.port, ca_config.listen.mtls.port, listen.http.port, ca_config.listen.plain.port}
    assert _ports(rendered, "Deployment", "gatehouse-ca", "ca") == wanted == {15010, 15012, 15013, 15014}
    config = injector.config.load(_write(tmp_path, rendered, "injector"), {})
    assert config.listen.plain is not None
    assert config.certificate.listen is not None
    webhook = {config.listen.https.port, config.listen.plain.port}
    assert _ports(rendered, "Deployment", "gatehouse-injector", "webhook") == webhook == {15017, 15014}
    assert _ports(rendered, "Deployment", "gatehouse-injector", "certificate") == {
        config.certificate.listen.port
    }


def test_metrics_by_tls_are_where_the_settings_the_services_and_the_monitors_say(tmp_path: Path) -> None:
    values = {"metrics": {"tls": True, "serviceMonitor": {"enabled": True}}, "capture": {"mode": "node"}}
    rendered = render(values=values)
    webhook = injector.config.load(_write(tmp_path, rendered, "injector"), {})
    env = {f"{nodeagent.config.ENV_PREFIX}KUBERNETES__NODE_NAME": "node1"}
    agent = nodeagent.config.load_settings(_write(tmp_path, rendered, "nodeagent"), env, {})
    grants = {
        grant.service_account.partition("/gatehouse-")[2]: grant.dns
        for grant in ca.config.load(_write(tmp_path, rendered, "ca"), {}).serving_grants
    }
    assert webhook.listen.metrics is not None
    assert webhook.certificate.metrics is not None
    assert agent.metrics_tls.listen is not None
    assert grants["upkeep"] == webhook.upkeep_names
    assert grants["nodeagent"] == (agent.metrics_tls.name,)
    assert grants["capture"] == webhook.capture_names
    served = {
        ("injector", "https-metrics"): (webhook.listen.metrics.port, webhook.dns_names[0]),
        ("injector", "https-cert"): (webhook.certificate.metrics.port, webhook.dns_names[0]),
        ("upkeep", "https-metrics"): (webhook.listen.metrics.port, webhook.upkeep_names[0]),
        ("nodeagent", "https-metrics"): (agent.metrics_tls.listen.port, agent.metrics_tls.name),
        ("capture", "https-metrics"): (webhook.listen.metrics.port, webhook.capture_names[0]),
        ("ca", "https-bundle"): (15010, "gatehouse-ca.istio-system.svc"),
    }
    scraped = {}
    for monitor in rendered.all("ServiceMonitor", "PodMonitor"):
        component = monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        kind = "DaemonSet" if component in {"nodeagent", "capture"} else "Deployment"
        pod = rendered.one(kind, f"gatehouse-{component}")["spec"]["template"]
        containers = pod["spec"]["containers"]
        ports = {p["name"]: p["containerPort"] for c in containers for p in c.get("ports", ())}
        assert pod["metadata"]["annotations"]["prometheus.io/scheme"] == "https"
        endpoints = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        for endpoint in endpoints:
            assert endpoint["scheme"] == "https"
            assert endpoint["tlsConfig"]["ca"]["configMap"]["name"] == "istio-ca-root-cert"
            scraped[component, endpoint["port"]] = (
                ports[endpoint["port"]],
                endpoint["tlsConfig"]["serverName"],
            )
        assert int(pod["metadata"]["annotations"]["prometheus.io/port"]) in {
            ports[endpoint["port"]] for endpoint in endpoints
        }
    assert scraped == served
    for service in rendered.all("Service"):
        component = service["metadata"]["name"].removeprefix("gatehouse-")
        names = {port["name"] for port in service["spec"]["ports"]}
        assert {port for owner, port in served if owner == component} <= names
        assert "http-metrics" not in names


def _ports(rendered: Rendered, kind: str, name: str, container: str) -> set[int]:
    containers = rendered.one(kind, name)["spec"]["template"]["spec"]["containers"]
    return {
        port["containerPort"] for item in containers if item["name"] == container for port in item["ports"]
    }


def test_upkeep_and_webhook_read_one_file() -> None:
    rendered = render()
    volumes = [
        next(volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "config")
        for name in ("gatehouse-injector", "gatehouse-upkeep")
        if (spec := rendered.one("Deployment", name)["spec"]["template"]["spec"])
    ]
    assert volumes == ["gatehouse-injector-config", "gatehouse-injector-config"]


def test_agent_and_worker_of_a_node_meet(tmp_path: Path) -> None:
    """One file, one socket in a directory that both mount, and the node's name."""
    rendered = render(values={"capture": {"mode": "node"}})
    pod = rendered.one("DaemonSet", "gatehouse-capture")["spec"]["template"]["spec"]
    agent, worker = pod["containers"]
    env = {item["name"]: "node1" for item in agent["env"]}
    config = injector.config.load(_write(tmp_path, rendered, "injector"), env)
    assert config.capture_agent.node_name == "node1"
    assert str(config.capture_agent.socket) == capture_worker.SOCKET
    shared = {"name": "worker", "mountPath": str(config.capture_agent.socket.parent)}
    assert shared in agent["volumeMounts"]
    assert shared in worker["volumeMounts"]
    assert worker["command"] == ["python3", "-m", capture_worker.__name__]
    assert agent["command"] == ["python", "-m", "injector", "capture"]
    assert config.listen.plain is not None
    port = {"name": "http-metrics", "containerPort": config.listen.plain.port, "protocol": "TCP"}
    assert port in agent["ports"]
    group = worker["securityContext"]["runAsGroup"]
    assert group == pod["securityContext"]["runAsGroup"], "the socket is for the group"


def test_a_ca_of_ones_own_is_mounted_and_no_root_is_made(tmp_path: Path) -> None:
    rendered = render(values={"ca": {"existingSecret": "cacerts"}})
    config = ca.config.load(_write(tmp_path, rendered, "ca"), {})
    pod = rendered.one("Deployment", "gatehouse-ca")["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volume = next(item for item in pod["volumes"] if item["name"] == mounts[str(config.ca_dir)])
    assert volume["secret"]["secretName"] == "cacerts"
    assert not rendered.all("Secret")
    for role in rendered.all("Role", "ClusterRole"):
        assert not [rule for rule in role["rules"] if "secrets" in rule.get("resources", ())]


@pytest.mark.parametrize("secret", ["", "cacerts"])
def test_rotations_are_told_and_acknowledged_with_any_ca(secret: str) -> None:
    """A plugged-in CA is rotated by somebody else, who wants to see who trusts the new root."""
    rendered = render(values={"ca": {"existingSecret": secret, "keepRoot": True}})
    role = rendered.one("Role", "gatehouse-ca")
    rights = {
        name: rule["verbs"]
        for rule in role["rules"]
        if rule["resources"] == ["configmaps"]
        for name in rule["resourceNames"]
    }
    assert rights == {"gatehouse-ca": ["get", "update"], "gatehouse-ca-agents": ["get", "patch"]}
    for name in rights:
        assert "data" not in rendered.one("ConfigMap", name)
    kept = rendered.one("ConfigMap", "gatehouse-ca")["metadata"].get("annotations")
    assert kept == (None if secret else {"helm.sh/resource-policy": "keep"})


def test_node_agents_have_a_token_for_the_authority(tmp_path: Path) -> None:
    for tls in (False, True):
        rendered = render(values={"metrics": {"tls": tls}})
        env = {f"{nodeagent.config.ENV_PREFIX}KUBERNETES__NODE_NAME": "node1"}
        agent = nodeagent.config.load_settings(_write(tmp_path, rendered, "nodeagent"), env, {})
        token = agent.ca.token_file
        pod = rendered.one("DaemonSet", "gatehouse-nodeagent")["spec"]["template"]["spec"]
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert token is not None
        volume = next(item for item in pod["volumes"] if item["name"] == mounts[str(token.parent)])
        source = volume["projected"]["sources"][0]["serviceAccountToken"]
        assert (source["path"], source["audience"]) == (token.name, "istio-ca")
        account = f"istio-system/{pod['serviceAccountName']}"
        authority = ca.config.load(_write(tmp_path, rendered, "ca"), {})
        assert authority.cluster.agents == account, "it alone may use the Sync API"


@pytest.mark.parametrize(("automatic", "hold"), [(True, "1h"), (False, "90m")])
def test_how_a_rotation_goes_on(automatic: bool, hold: str, tmp_path: Path) -> None:
    values = {"ca": {"rotation": {"automatic": automatic, "hold": hold}}}
    found = ca.config.load(_write(tmp_path, render(values=values), "ca"), {}).rotation
    assert (found.automatic, found.hold) == (automatic, parse_duration(hold))
    if automatic:
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        assert values["ca"]["rotation"] == defaults["ca"]["rotation"]


def test_a_parent_chart_may_give_registry_and_pull_secrets(tmp_path: Path) -> None:
    """To injected pods too; what the chart's own values say goes before, and other keys are not ours."""
    values: dict[str, Any] = {
        "global": {
            "imageRegistry": "registry.example.com/all/",
            "imagePullSecrets": ["all", {"name": "more"}],
            "storageClass": "fast",
        },
        "image": {"pullSecrets": ["own", "all"]},
    }
    rendered = render(values=values)
    pod = rendered.one("Deployment", "gatehouse-ca")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example.com/all/gatehouse/control:0.1.0"
    assert pod["imagePullSecrets"] == [{"name": "own"}, {"name": "all"}, {"name": "more"}]
    config = injector.config.load(_write(tmp_path, rendered, "injector"), {})
    assert config.injection.proxy_image == "registry.example.com/all/gatehouse/proxy:0.1.0"
    assert config.injection.image_pull_secrets == ("all", "more")
    own = render(values={**values, "image": {"registry": "own.example.com"}})
    assert 'image: "own.example.com/gatehouse/control:0.1.0"' in own.text


def test_private_roots_of_issuers_are_a_file_of_upkeep(tmp_path: Path) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"
    rendered = render(values={"upkeep": {"issuerRoots": pem}})
    config = injector.config.load(_write(tmp_path, rendered, "injector"), {})
    assert config.upkeep.jwks.ca_file == Path("/etc/gatehouse/issuer-roots.pem")
    data = rendered.one("ConfigMap", "gatehouse-injector-config")["data"]
    assert data["issuer-roots.pem"].strip() == pem.strip()


def test_the_root_goes_or_stays_with_the_release() -> None:
    for keep in (False, True):
        secret = render(values={"ca": {"keepRoot": keep}}).one("Secret", "gatehouse-ca")
        assert "data" not in secret
        assert secret["metadata"].get("annotations") == (
            {"helm.sh/resource-policy": "keep"} if keep else None
        )
