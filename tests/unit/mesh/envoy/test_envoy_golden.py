"""Golden files: what is rendered, reviewed as data. `make golden` rewrites them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mesh.envoy.bootstrap import BootstrapOptions, bootstrap
from mesh.envoy.render import ProxyInput, render
from mesh.envoy.resources import SDS_ALL_BUNDLES, SDS_ROOTS, SDS_SVID, ResourceSet
from mesh.envoy.secrets import bundles_secret, roots_secret, svid_secret
from mesh.meshconfig import ForwardClientCert, OutboundPolicy, PathNormalization
from mesh.policy.effective import AuthzPolicy, EffectivePolicy, MtlsMode, RuleSets, TransportPolicy
from mesh.policy.predicates import Always, PeerServiceAccount
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol, Interception, SocketAddress
from tests.fakes import envoy_inputs as inputs
from tests.fakes.envoy_static import resources_as_data
from tests.fakes.golden import check_golden

MODES = [MtlsMode.STRICT, MtlsMode.PERMISSIVE, MtlsMode.DISABLE]


def check(name: str, resources: ResourceSet, *kinds: str) -> None:
    data = resources_as_data(resources)
    check_golden(f"envoy/{name}.json", {kind: data[kind] for kind in kinds or data})


@pytest.mark.parametrize(
    "protocol", [AppProtocol.HTTP, AppProtocol.TCP, AppProtocol.AUTO], ids=lambda p: p.value
)
@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.value)
def test_golden_inbound_by_mode_and_protocol(mode, protocol):
    proxy = ProxyInput(inputs.workload(protocol), inputs.policy(mode), (), inputs.MESH)
    check(f"inbound-{mode.value}-{protocol.value}".lower(), render(proxy), "Listener")


@pytest.mark.parametrize("protocol", AppProtocol, ids=lambda p: p.value)
def test_golden_outbound_by_protocol(protocol):
    web = inputs.workload(egress=inputs.egress(1))
    proxy = ProxyInput(web, inputs.policy(), (inputs.outbound(inputs.service(protocol)),), inputs.MESH)
    check(f"outbound-{protocol.value}".lower(), render(proxy), "Listener", "Cluster", "ClusterLoadAssignment")


def test_golden_external_service():
    web = inputs.workload(egress=inputs.egress(1))
    found = inputs.outbound(inputs.service(AppProtocol.HTTP, external=True))
    proxy = ProxyInput(web, inputs.policy(), (found,), inputs.MESH)
    check("outbound-external", render(proxy), "Cluster", "ClusterLoadAssignment")


def test_golden_http_policy():
    check("policy-every-rule", render(inputs.everything()), "TypedExtensionConfig")


def test_golden_no_policy_is_resources_without_rules():
    check("policy-none", render(ProxyInput(inputs.workload(), EffectivePolicy(), (), inputs.MESH)))


def test_golden_default_deny():
    deny = EffectivePolicy(authz=AuthzPolicy(RuleSets(allow=()), RuleSets(allow=())))
    check("policy-default-deny", render(ProxyInput(inputs.workload(), deny, (), inputs.MESH)))


@pytest.mark.parametrize("mode", [MtlsMode.STRICT, MtlsMode.PERMISSIVE], ids=lambda m: m.value)
def test_golden_identity_only_tcp(mode):
    """P9: SAN list and no early connection; plaintext has no chain."""
    rules = RuleSets(allow=(inputs.rule(PeerServiceAccount("demo", "ratings"), Always()),))
    policy = EffectivePolicy(transport=TransportPolicy(mode), authz=AuthzPolicy(tcp=rules))
    proxy = ProxyInput(inputs.workload(AppProtocol.TCP), policy, (), inputs.MESH)
    check(f"identity-only-{mode.value}".lower(), render(proxy), "Listener")


def test_golden_tcp_rules():
    proxy = ProxyInput(
        inputs.workload(AppProtocol.TCP),
        EffectivePolicy(authz=AuthzPolicy(tcp=inputs.TCP_RULES)),
        (),
        inputs.MESH,
    )
    check("tcp-rules", render(proxy), "Listener")


def test_golden_redirect_inbound():
    """A declared port of each mode, an undeclared one with a mode of its own, and any other."""
    transport = TransportPolicy(
        MtlsMode.PERMISSIVE, {8080: MtlsMode.STRICT, 8081: MtlsMode.DISABLE, 9999: MtlsMode.STRICT}
    )
    web = inputs.workload(AppProtocol.HTTP, AppProtocol.TCP, interception=Interception.REDIRECT)
    resources = render(ProxyInput(web, EffectivePolicy(transport=transport), (), inputs.MESH))
    data = resources_as_data(resources)
    check_golden("envoy/redirect-inbound.json", data["Listener"]["virtualInbound"])
    check_golden("envoy/redirect-clusters.json", data["Cluster"])


@pytest.mark.parametrize("unknown", OutboundPolicy, ids=lambda o: o.value)
def test_golden_redirect_outbound(unknown):
    found = inputs.service(AppProtocol.HTTP, AppProtocol.TCP, AppProtocol.AUTO, addresses=("10.0.0.10",))
    web = inputs.workload(interception=Interception.REDIRECT)
    mesh = replace(inputs.MESH, outbound_policy=unknown)
    resources = render(ProxyInput(web, EffectivePolicy(), (inputs.outbound(found),), mesh))
    data = resources_as_data(resources)
    listeners = {name: value for name, value in data["Listener"].items() if name != "virtualInbound"}
    if unknown is OutboundPolicy.REGISTRY_ONLY:
        listeners = {"virtualOutbound": listeners["virtualOutbound"]}
    name = f"envoy/redirect-outbound-{unknown.value}.json".lower().replace("_", "-")
    check_golden(name, {"Listener": listeners, "RouteConfiguration": data["RouteConfiguration"]})


@pytest.mark.parametrize("protocol", AppProtocol, ids=lambda p: p.value)
def test_golden_headless(protocol):
    """A pod in the mesh and one outside: a listener each, and one cluster of original destinations."""
    found = replace(inputs.service(protocol), headless=True)
    web = inputs.workload(interception=Interception.REDIRECT)
    data = resources_as_data(
        render(ProxyInput(web, EffectivePolicy(), (inputs.outbound(found),), inputs.MESH))
    )
    pods = {name: value for name, value in data["Listener"].items() if name.startswith("127.")}
    assert pods.keys() == {"127.0.10.2_9080", "127.0.10.3_9080"}
    direct = {name: value for name, value in data["Cluster"].items() if "|direct|" in name}
    check_golden(f"envoy/headless-{protocol.value}.json".lower(), {"Listener": pods, "Cluster": direct})


def test_golden_mesh_options():
    proxy = inputs.everything(
        MtlsMode.STRICT,
        path_normalization=PathNormalization.NONE,
        forward_client_cert=ForwardClientCert.APPEND_FORWARD,
        trust_domain_aliases=(TrustDomain("old.example"),),
        jwt_require_expiration=True,
        jwt_clock_skew_seconds=5,
        max_connection_seconds=600,
    )
    one_port = inputs.workload(AppProtocol.HTTP)
    check("mesh-options", render(ProxyInput(one_port, proxy.policy, (), proxy.mesh)))


def test_golden_secrets():
    secrets = ResourceSet(
        [
            svid_secret(SDS_SVID, [b"leaf", b"intermediate"], b"key"),
            roots_secret(SDS_ROOTS, [b"root-1", b"root-2"]),
            bundles_secret(
                SDS_ALL_BUNDLES, {TrustDomain("b.example"): [b"b"], TrustDomain("a.example"): [b"a"]}
            ),
        ]
    )
    check("secrets", secrets)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("minimal", {}, id="minimal"),
        pytest.param(
            "full",
            {
                "admin": "/run/gatehouse/admin.sock",
                "stats": SocketAddress("0.0.0.0", 15090),
                "readiness": SocketAddress("0.0.0.0", 15021),
                "metadata": {"workload": "demo/web", "b": "c"},
                "max_connections": 1000,
            },
            id="full",
        ),
        pytest.param(
            "debug",
            {"admin": SocketAddress("127.0.0.1", 15000), "admin_unrestricted": True},
            id="debug",
        ),
        pytest.param(
            "readiness-without-admin", {"readiness": SocketAddress("127.0.0.1", 15021)}, id="readiness"
        ),
    ],
)
def test_golden_bootstrap(name, options):
    text = bootstrap(
        BootstrapOptions(node_id="demo/web", agent_socket="/run/gatehouse/agent.sock", **options)
    )
    check_golden(f"envoy/bootstrap-{name}.json", json.loads(text))
