"""`envoy --mode validate` accepts everything that can be rendered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.envoy.bootstrap import BootstrapOptions, bootstrap
from mesh.envoy.render import ProxyInput, render
from mesh.envoy.resources import SDS_ALL_BUNDLES
from mesh.envoy.secrets import bundles_secret
from mesh.meshconfig import ForwardClientCert, OutboundPolicy, PathNormalization
from mesh.policy.effective import AuthzPolicy, EffectivePolicy, MtlsMode, RuleSets
from mesh.policy.predicates import Always, PathTemplate, PeerUri
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol, Interception, SocketAddress
from tests.fakes import envoy_inputs as inputs
from tests.fakes.envoy_pki import Pki, spiffe
from tests.fakes.envoy_process import validate
from tests.fakes.envoy_static import static_bootstrap

pytestmark = [pytest.mark.envoy, pytest.mark.xdist_group("envoy-validate")]

PKI = Pki()
SECRETS = [PKI.leaf(spiffe("web")).secret(), PKI.roots()]
MODES = [MtlsMode.STRICT, MtlsMode.PERMISSIVE, MtlsMode.DISABLE]


def accept(proxy: ProxyInput, *secrets) -> None:
    found = validate(static_bootstrap(render(proxy), [*SECRETS, *secrets]))
    assert found.ok, found.output
    assert "Deprecated" not in found.output, found.output


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.value)
@pytest.mark.parametrize("interception", Interception, ids=lambda i: i.value)
def test_everything(interception, mode):
    accept(inputs.everything(mode, interception))


@pytest.mark.parametrize("normalization", PathNormalization, ids=lambda n: n.value)
def test_mesh_options(normalization):
    accept(
        inputs.everything(
            path_normalization=normalization,
            forward_client_cert=ForwardClientCert.APPEND_FORWARD,
            outbound_policy=OutboundPolicy.REGISTRY_ONLY,
            trust_domain_aliases=(TrustDomain("old.example"),),
            max_connection_seconds=60,
            jwt_require_expiration=True,
        )
    )


@pytest.mark.parametrize("address", ["fd00::1", "::1"])
def test_ipv6(address):
    proxy = inputs.everything(interception=Interception.REDIRECT)
    ports = tuple(replace(port, app=SocketAddress(address, port.number)) for port in proxy.workload.ports)
    accept(replace(proxy, workload=replace(proxy.workload, address=address, ports=ports)))


def test_all_bundles():
    accept(
        ProxyInput(inputs.workload(AppProtocol.HTTP), inputs.policy(), (), inputs.MESH),
        bundles_secret(
            SDS_ALL_BUNDLES, {TrustDomain("cluster.local"): [PKI.der], TrustDomain("b"): [PKI.der]}
        ),
    )


def test_p6_long_regular_expressions():
    """Names of full length would exceed the default program size, and take the listener with them."""
    rules = RuleSets(
        allow=(
            inputs.rule(PeerUri(inputs.suffix(f"/ns/{'n' * 63}/sa/{'s' * 253}")), Always(), "a"),
            inputs.rule(Always(), PathTemplate("/" + "/".join(["{*}", "x" * 200] * 5)), "b"),
        )
    )
    accept(
        ProxyInput(
            inputs.workload(AppProtocol.HTTP), EffectivePolicy(authz=AuthzPolicy(http=rules)), (), inputs.MESH
        )
    )


def test_any_printable_character_is_a_literal():
    """Quoting for RE2: each character stands for itself, in one configuration."""
    characters = [chr(code) for code in range(32, 127) if chr(code) not in "/{}"] + ["é", "€"]
    rules = tuple(
        inputs.rule(PeerUri(inputs.suffix(f"x{c}y")), PathTemplate(f"/a{c}b/{{*}}"), f"p{i}")
        for i, c in enumerate(characters)
    )
    policy = EffectivePolicy(authz=AuthzPolicy(http=RuleSets(deny=rules)))
    accept(ProxyInput(inputs.workload(AppProtocol.HTTP), policy, (), inputs.MESH))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="minimal"),
        pytest.param(
            {
                "admin": "/tmp/gh-validate-admin.sock",
                "stats": SocketAddress("127.0.0.1", 15090),
                "readiness": SocketAddress("127.0.0.1", 15021),
                "metadata": {"a": "b"},
            },
            id="full",
        ),
        pytest.param({"admin": SocketAddress("127.0.0.1", 0), "admin_unrestricted": True}, id="debug"),
        pytest.param({"readiness": SocketAddress("127.0.0.1", 15021)}, id="readiness-without-admin"),
    ],
)
def test_bootstrap(options):
    found = validate(bootstrap(BootstrapOptions(node_id="n", agent_socket="/tmp/gh-agent.sock", **options)))
    assert found.ok, found.output
    assert "Deprecated" not in found.output
