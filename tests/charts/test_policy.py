"""What every rendered object must satisfy: restricted pods, least rights, a webhook that cannot lock out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.fakes.helm import Rendered, render

PROCESSES = ("ca", "injector", "upkeep", "nodeagent")
CAPTURE, WORKER = "capture", "capture/worker"
NEVER = ("kube-system", "kube-public", "kube-node-lease")
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "all": {
        "injector": {
            "namespacesByDefault": True,
            "excludedNamespaces": ["legacy"],
            "config": {"injection": {"selection": {"pods_override_disabled": True}}},
        },
        "ca": {"tokenReview": True},
        "metrics": {"tls": True},
        "networkPolicy": {"egress": {"enabled": True}},
    },
    "node": {"capture": {"mode": "node"}},
    "node-tls": {"capture": {"mode": "node"}, "metrics": {"tls": True}},
    "revision": {"injector": {"revision": "blue", "tags": ["stable"]}},
}


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def chart(request: pytest.FixtureRequest) -> Rendered:
    return render(values=VARIANTS[request.param])


def _pods(chart: Rendered) -> Iterator[tuple[str, dict[str, Any]]]:
    for item in chart.all("Deployment", "DaemonSet"):
        yield item["metadata"]["name"].removeprefix("gatehouse-"), item["spec"]["template"]


def _containers(chart: Rendered) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name, pod in _pods(chart):
        for container in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]:
            yield f"{name}/{container['name']}", pod["spec"], container


def _processes(chart: Rendered) -> tuple[str, ...]:
    """The processes that a chart must have."""
    capture = "node_capture: true" in chart.setting_file("injector")
    return (*PROCESSES, CAPTURE) if capture else PROCESSES


def test_each_process_has_its_own_service_account(chart: Rendered) -> None:
    accounts = {name: pod["spec"]["serviceAccountName"] for name, pod in _pods(chart)}
    assert accounts == {name: f"gatehouse-{name}" for name in _processes(chart)}
    assert {item["metadata"]["name"] for item in chart.all("ServiceAccount")} == set(accounts.values())


def test_containers_are_restricted(chart: Rendered) -> None:
    for name, pod, container in _containers(chart):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert "privileged" not in context, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for field in ("hostNetwork", "hostIPC", "shareProcessNamespace"):
            assert field not in pod, name
        assert pod.get("hostPID", False) is name.startswith(f"{CAPTURE}/"), name
        assert "seccompProfile" not in context, name
        if name == WORKER:
            continue
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        if name == "nodeagent/nodeagent":
            assert pod["securityContext"]["runAsUser"] == 0
        else:
            assert pod["securityContext"]["runAsNonRoot"] is True, name
            assert pod["securityContext"]["runAsUser"] >= 1000, name


def test_only_the_agent_sees_the_node_and_only_its_directories(chart: Rendered) -> None:
    paths = {
        (name, volume["hostPath"]["path"])
        for name, pod in _pods(chart)
        for volume in pod["spec"]["volumes"]
        if "hostPath" in volume
    }
    kubelet = "/var/lib/kubelet"
    assert paths == {
        ("nodeagent", f"{kubelet}/pods"),
        ("nodeagent", f"{kubelet}/plugins/csi.gatehouse.dev"),
        ("nodeagent", f"{kubelet}/plugins_registry"),
        ("nodeagent", "/run/gatehouse"),
    }
    for name, _, container in _containers(chart):
        assert not [mount for mount in container["volumeMounts"] if "mountPropagation" in mount], name


def test_containers_have_resources_and_three_probes(chart: Rendered) -> None:
    for name, _, container in _containers(chart):
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
        if name == WORKER:
            continue  # the agent's readiness tells of it; when it ends, it is started again
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            action = container[probe]["httpGet"]
            assert action["port"] in ports, f"{name} {probe}"
            assert action["path"] == ("/readyz" if probe == "readinessProbe" else "/livez"), name


def test_pods_say_how_important_they_are(chart: Rendered) -> None:
    for name, pod in _pods(chart):
        wanted = "system-node-critical" if name in {"nodeagent", CAPTURE} else "system-cluster-critical"
        assert pod["spec"]["priorityClassName"] == wanted


def test_tokens_go_only_where_they_are_needed(chart: Rendered) -> None:
    mounts: dict[str, set[str]] = {}
    for name, pod, container in _containers(chart):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        mounts[name] = {mount["name"] for mount in container["volumeMounts"]} & {"api-token", "ca-token"}
    ports = chart.one("Deployment", "gatehouse-upkeep")["spec"]["template"]["spec"]["containers"][0]["ports"]
    # A certificate for metrics is asked for with a token of the process's own.
    own = {"ca-token"} if "https-metrics" in {port["name"] for port in ports} else set()
    assert mounts == {
        "ca/ca": {"api-token"},
        "injector/webhook": {"api-token"},
        "injector/certificate": {"api-token", "ca-token"},
        "upkeep/upkeep": {"api-token"} | own,
        "nodeagent/nodeagent": {"api-token", "ca-token"},  # it tells the authority who has new roots
        **({"capture/agent": {"api-token"} | own, WORKER: set()} if CAPTURE in _processes(chart) else {}),
    }
    for item in chart.all("ServiceAccount"):
        assert item["automountServiceAccountToken"] is False


def test_tokens_for_the_authority_have_its_audience_only(chart: Rendered) -> None:
    found = [
        source["serviceAccountToken"]
        for _, pod in _pods(chart)
        for volume in pod["spec"]["volumes"]
        if volume["name"] == "ca-token"
        for source in volume["projected"]["sources"]
    ]
    assert found
    for source in found:
        assert source == {"path": "istio-token", "audience": "istio-ca", "expirationSeconds": 3600}
    driver = chart.one("CSIDriver", "csi.gatehouse.dev")["spec"]
    assert driver["tokenRequests"] == [{"audience": "istio-ca", "expirationSeconds": 3600}]
    assert driver["requiresRepublish"] is True
    assert driver["podInfoOnMount"] is True
    assert driver["volumeLifecycleModes"] == ["Ephemeral"]
    assert driver["attachRequired"] is False
    assert driver["fsGroupPolicy"] == "None"


def _rules(chart: Rendered) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for item in chart.all("ClusterRole", "Role"):
        for rule in item["rules"]:
            yield item["metadata"]["name"].removeprefix("gatehouse-"), item["kind"], rule


WRITE = {"create", "update", "patch", "delete", "deletecollection"}
ESCALATE = {"escalate", "bind", "impersonate", "approve", "sign", "attest"}
DANGEROUS = {
    "clusterrolebindings", "rolebindings", "roles", "pods/exec", "pods/attach", "pods/ephemeralcontainers",
    "serviceaccounts/token", "certificatesigningrequests/approval", "nodes/proxy", "serviceaccounts",
    "customresourcedefinitions",
}  # fmt: skip


def test_rights_have_no_wildcard_and_no_escalation(chart: Rendered) -> None:
    for name, kind, rule in _rules(chart):
        words = {word for key in ("apiGroups", "resources", "verbs") for word in rule.get(key, ())}
        assert not any("*" in word for word in (*words, *rule.get("nonResourceURLs", ()))), f"{kind} {name}"
        if rule.get("resources") == ["signers"]:
            # What the API wants of whoever publishes trust bundles, for a name of our own and no other.
            assert (name, kind, rule["verbs"]) == ("ca", "ClusterRole", ["attest"])
            assert rule["resourceNames"] == ["gatehouse.dev/ca"]
            continue
        assert not ESCALATE & set(rule["verbs"]), f"{kind} {name}"
        assert not DANGEROUS & set(rule.get("resources", ())), f"{kind} {name}"
        assert not {"delete", "deletecollection"} & set(rule["verbs"]), f"{kind} {name}"
        if "clusterroles" in rule.get("resources", ()):
            assert rule["verbs"] == ["get"]
            assert len(rule["resourceNames"]) == 1


def test_secrets_are_the_authoritys_alone_and_by_name(chart: Rendered) -> None:
    found = [
        (name, kind, rule) for name, kind, rule in _rules(chart) if "secrets" in rule.get("resources", ())
    ]
    assert found
    for name, kind, rule in found:
        assert (name, kind) == ("ca", "Role")
        assert (rule["resourceNames"], rule["verbs"]) == (["gatehouse-ca"], ["get", "update"])


def test_writes_are_by_name_or_pure_creation(chart: Rendered) -> None:
    """But for the status of policies, which users name: patched by one process, which cannot touch more."""
    for name, kind, rule in _rules(chart):
        writes = WRITE & set(rule["verbs"])
        if all(resource.endswith("/status") for resource in rule.get("resources", [""])):
            assert (name, rule["apiGroups"], rule["verbs"]) == ("upkeep", ["security.istio.io"], ["patch"])
            assert len(rule["resources"]) == 3
        elif writes:
            assert writes == {"create"} or rule.get("resourceNames"), f"{kind} {name}: {rule}"


def _writers(chart: Rendered) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in _processes(chart)}
    for name, _, rule in _rules(chart):
        if WRITE & set(rule["verbs"]):
            found[name] |= set(rule["resources"])
    return found


def test_the_webhook_and_the_agent_cannot_change_anything(chart: Rendered) -> None:
    writers = _writers(chart)
    assert writers["injector"] <= {"events"}
    assert writers["nodeagent"] == set()
    assert writers.get(CAPTURE, set()) <= {"events"}


def test_without_events_the_webhook_cannot_write_at_all() -> None:
    assert _writers(render(values={"injector": {"events": False}}))["injector"] == set()


@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("status", [True, False])
def test_upkeep_sees_policies_only_for_what_it_tells_about_them(events: bool, status: bool) -> None:
    chart = render(values={"injector": {"events": events}, "upkeep": {"policyStatus": status}})
    rights = {
        (resource, verb)
        for name, _, rule in _rules(chart)
        if name == "upkeep"
        for resource in rule.get("resources", ())
        for verb in rule["verbs"]
    }
    assert (("authorizationpolicies", "watch") in rights) == (events or status)
    assert (("authorizationpolicies/status", "patch") in rights) == status
    assert (("events", "create") in rights) == events
    assert ("requestauthentications", "watch") in rights


def test_token_reviews_are_granted_only_when_used() -> None:
    def rights(chart: Rendered) -> bool:
        return any("tokenreviews" in rule.get("resources", ()) for _, _, rule in _rules(chart))

    assert not rights(render())
    assert rights(render(values={"ca": {"tokenReview": True}}))


def test_bindings_name_the_processes_and_nobody_else(chart: Rendered) -> None:
    for item in chart.all("ClusterRoleBinding", "RoleBinding"):
        name = item["metadata"]["name"]
        assert item["roleRef"]["name"] == name
        assert item["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "istio-system"}]


# --- the webhook


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As the API server: all requirements; NotIn holds for absent keys."""
    assert set(selector) == {"matchExpressions"}
    for rule in selector["matchExpressions"]:
        value = labels.get(rule["key"])
        match rule["operator"]:
            case "In":
                good = value in rule["values"]
            case "NotIn":
                good = value not in rule["values"]
            case "Exists":
                good = value is not None
            case "DoesNotExist":
                good = value is None
            case _:
                raise AssertionError(rule)
        if not good:
            return False
    return True


def calls(chart: Rendered, namespace: Mapping[str, str], pod: Mapping[str, str]) -> list[str]:
    """Entries that the API server would call."""
    webhook = chart.one("MutatingWebhookConfiguration", "gatehouse-sidecar-injector")
    return [
        entry["name"].partition(".sidecar-injector.")[0]
        for entry in webhook["webhooks"]
        if matches(entry["namespaceSelector"], namespace) and matches(entry["objectSelector"], pod)
    ]


INJECT = "sidecar.istio.io/inject"
NAME = "kubernetes.io/metadata.name"
TRUTH = [
    ("labelled", {"istio-injection": "enabled"}, {}, ["namespace"]),
    ("labelled, pod out", {"istio-injection": "enabled"}, {INJECT: "false"}, []),
    ("labelled, pod in", {"istio-injection": "enabled"}, {INJECT: "true"}, ["namespace"]),
    ("disabled", {"istio-injection": "disabled"}, {}, []),
    ("disabled, pod in", {"istio-injection": "disabled"}, {INJECT: "true"}, []),
    ("silent", {}, {}, []),
    ("silent, pod in", {}, {INJECT: "true"}, ["object"]),
    ("silent, pod in, foreign revision", {}, {INJECT: "true", "istio.io/rev": "red"}, []),
    ("revision", {"istio.io/rev": "default"}, {}, ["rev.namespace"]),
    ("revision, pod out", {"istio.io/rev": "default"}, {INJECT: "false"}, []),
    ("foreign revision", {"istio.io/rev": "red"}, {INJECT: "true"}, []),
    ("label beats revision", {"istio-injection": "enabled", "istio.io/rev": "red"}, {}, ["namespace"]),
    ("pod names revision", {}, {"istio.io/rev": "default"}, ["rev.object"]),
    ("pod names foreign revision", {}, {"istio.io/rev": "red"}, []),
]


@pytest.mark.parametrize(
    ("namespace", "pod", "expected"), [row[1:] for row in TRUTH], ids=[row[0] for row in TRUTH]
)
def test_who_is_sent_to_the_webhook(
    namespace: dict[str, str], pod: dict[str, str], expected: list[str]
) -> None:
    """injector a.1: at most one entry for a pod."""
    assert calls(render(), namespace, pod) == expected


def test_other_ways_of_selection() -> None:
    everything = render(values=VARIANTS["all"])
    assert calls(everything, {NAME: "shop"}, {}) == ["auto"]
    assert calls(everything, {NAME: "shop"}, {INJECT: "false"}) == []
    assert calls(everything, {NAME: "shop", "istio-injection": "disabled"}, {INJECT: "true"}) == ["override"]
    assert calls(everything, {NAME: "legacy", "istio-injection": "enabled"}, {}) == []
    blue = render(values=VARIANTS["revision"])
    assert calls(blue, {"istio-injection": "enabled"}, {}) == []
    assert calls(blue, {"istio.io/rev": "stable"}, {}) == ["rev.namespace"]
    assert calls(blue, {}, {"istio.io/rev": "blue"}) == ["rev.object"]
    both = render(values={"injector": {"revision": "blue", "tags": ["default"]}})
    assert calls(both, {"istio-injection": "enabled"}, {}) == ["namespace"]


@pytest.mark.parametrize("namespace", [*NEVER, "istio-system"])
def test_the_webhook_never_selects_what_the_cluster_needs(chart: Rendered, namespace: str) -> None:
    """D17: whatever labels namespace and pod have, every call is ruled out."""
    for labels in ({}, {"istio-injection": "enabled"}, {"istio.io/rev": "default"}, {"istio.io/rev": "blue"}):
        for pod in ({}, {INJECT: "true"}, {"istio.io/rev": "default"}, {"istio.io/rev": "blue"}):
            assert calls(chart, {**labels, NAME: namespace}, pod) == []


def test_gatehouse_itself_is_never_selected_even_where_namespaces_have_no_name(chart: Rendered) -> None:
    """Kubernetes 1.20 does not label namespaces with their name."""
    for name, pod in _pods(chart):
        labels = pod["metadata"]["labels"]
        assert labels[INJECT] == "false", name
        for namespace in ({}, {"istio-injection": "enabled"}, {"istio.io/rev": "default"}):
            assert calls(chart, namespace, labels) == []
            assert calls(chart, namespace, {**labels, INJECT: "true", "istio.io/rev": "default"}) == []


def test_entries_of_the_webhook(chart: Rendered) -> None:
    """injector d.4."""
    webhook = chart.one("MutatingWebhookConfiguration", "gatehouse-sidecar-injector")
    assert webhook["metadata"]["labels"]["app"] == "gatehouse"
    names = [entry["name"] for entry in webhook["webhooks"]]
    assert len(set(names)) == len(names)
    for entry in webhook["webhooks"]:
        assert "caBundle" not in entry["clientConfig"]
        assert entry["clientConfig"]["service"]["path"] == "/inject/v1"
        assert (entry["failurePolicy"], entry["matchPolicy"]) == ("Fail", "Equivalent")
        assert (entry["reinvocationPolicy"], entry["timeoutSeconds"]) == ("IfNeeded", 5)
        assert entry["admissionReviewVersions"] == ["v1"]
        assert entry["sideEffects"] == "NoneOnDryRun"
        rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
        assert entry["rules"] == [{**rule, "scope": "Namespaced"}]


def test_without_events_the_webhook_has_no_side_effects() -> None:
    chart = render(values={"injector": {"events": False}})
    webhook = chart.one("MutatingWebhookConfiguration", "gatehouse-sidecar-injector")
    assert {entry["sideEffects"] for entry in webhook["webhooks"]} == {"None"}


def test_no_hooks_and_everything_labelled(chart: Rendered) -> None:
    for item in chart.objects:
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "gatehouse", item["metadata"]["name"]
        assert labels["app.kubernetes.io/part-of"] == "gatehouse"
        assert labels["helm.sh/chart"].startswith("gatehouse-")
        assert not [key for key in item["metadata"].get("annotations", {}) if key.startswith("helm.sh/hook")]


def test_network_policies_cover_every_process(chart: Rendered) -> None:
    selected = {
        item["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: item["spec"]
        for item in chart.all("NetworkPolicy")
    }
    assert set(selected) == set(_processes(chart))
    for name, pod in _pods(chart):
        reachable = {port["port"] for rule in selected[name]["ingress"] for port in rule["ports"]}
        ports = {p["name"]: p["containerPort"] for c in pod["spec"]["containers"] for p in c.get("ports", ())}
        secure = "https-metrics" in ports
        # Where metrics go by TLS, what is left in plain is for the kubelet, which policies always let in.
        for kubelets in ("http-health", "http-cert") if secure else ():
            assert ports.pop(kubelets, 0) not in reachable, name
        assert set(ports.values()) <= reachable, name
    csr = [rule for rule in selected["ca"]["ingress"] if {"port": 15012, "protocol": "TCP"} in rule["ports"]]
    assert len(csr) == 1
    clients = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in csr[0]["from"]}
    with_token = CAPTURE in _processes(chart) and chart.setting_file("injector").count("metrics:")
    assert clients == {"nodeagent", "injector", "upkeep"} | ({CAPTURE} if with_token else set())


def test_replicas_spread_and_survive_drains(chart: Rendered) -> None:
    for name in ("ca", "injector"):
        spec = chart.one("Deployment", f"gatehouse-{name}")["spec"]
        assert spec["replicas"] == 2
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        pod = spec["template"]["spec"]
        assert pod["affinity"]["podAntiAffinity"]
        assert pod["topologySpreadConstraints"]
        budget = chart.one("PodDisruptionBudget", f"gatehouse-{name}")["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    daemon = chart.one("DaemonSet", "gatehouse-nodeagent")["spec"]["template"]["spec"]
    assert daemon["tolerations"] == [{"operator": "Exists"}]


def test_every_port_names_its_protocol(chart: Rendered) -> None:
    """API servers of 1.20 refuse a server-side apply (Helm 4) of ports without it: it is part of the key."""
    ports = [port for item in chart.all("Service") for port in item["spec"]["ports"]]
    for item in chart.all("Deployment", "DaemonSet"):
        pod = item["spec"]["template"]["spec"]
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            ports += container.get("ports", ())
    assert len(ports) > 8
    assert [port for port in ports if port.get("protocol") != "TCP"] == []
