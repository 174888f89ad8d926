"""Rules that hold for everything that is rendered, and the cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
from envoy.config.core.v3 import config_source_pb2, protocol_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import any_pb2, symbol_database
from google.protobuf.unknown_fields import UnknownFieldSet

from mesh.envoy import extensions, filters
from mesh.envoy import messages as m
from mesh.envoy.cache import RenderCache
from mesh.envoy.render import OutboundService, ProxyInput, missing_services, render
from mesh.envoy.resources import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, ResourceSet
from mesh.meshconfig import OutboundPolicy
from mesh.policy.effective import AuthzPolicy, EffectivePolicy, JwtPolicy, JwtRegion, MtlsMode, RuleSets
from mesh.policy.predicates import Always, PeerUri
from mesh.topology import AppProtocol, EgressListener, Interception, Service, SocketAddress
from tests.fakes import envoy_inputs as inputs
from tests.fakes.envoy_static import decode


def walk(message):
    """Every message within a message, through Any fields of types that are loaded."""
    yield message
    if isinstance(message, any_pb2.Any):
        kind = symbol_database.Default().GetSymbol(message.type_url.rpartition("/")[2])
        yield from walk(kind.FromString(message.value))
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from walk(value[key])
        elif field.is_repeated:
            for item in value:
                yield from walk(item)
        else:
            yield from walk(value)


def every(resources: ResourceSet, kind):
    for resource in resources:
        yield from (found for found in walk(decode(resource)) if isinstance(found, kind))


EVERYTHING = [
    pytest.param(interception, mode, id=f"{interception.value}-{mode.value}")
    for interception in Interception
    for mode in (MtlsMode.STRICT, MtlsMode.PERMISSIVE)
]


@pytest.mark.parametrize(("interception", "mode"), EVERYTHING)
def test_p1_golden_rule_no_downstream_context_resumes(interception, mode):
    """Both flags, and a required client certificate, in each context: one flag alone still resumes."""
    found = list(every(render(inputs.everything(mode, interception)), tls_pb2.DownstreamTlsContext))
    assert len(found) >= 3
    for context in found:
        assert context.disable_stateless_session_resumption is True
        assert context.disable_stateful_session_resumption is True
        assert context.require_client_certificate.value is True


@pytest.mark.parametrize(("interception", "mode"), EVERYTHING)
def test_no_context_accepts_anybody(interception, mode):
    for kind in (tls_pb2.DownstreamTlsContext, tls_pb2.UpstreamTlsContext):
        for context in every(render(inputs.everything(mode, interception)), kind):
            combined = context.common_tls_context.combined_validation_context
            assert combined.default_validation_context.match_typed_subject_alt_names
            assert combined.validation_context_sds_secret_config.name == "ROOTCA"


@pytest.mark.parametrize(("interception", "mode"), EVERYTHING)
def test_p5_every_source_is_ads_and_waits_for_ever(interception, mode):
    """S-11: and all have the same bytes."""
    found = list(every(render(inputs.everything(mode, interception)), config_source_pb2.ConfigSource))
    assert len(found) > 10
    assert {source.SerializeToString() for source in found} == {m.ads().SerializeToString()}


@pytest.mark.parametrize(("interception", "mode"), EVERYTHING)
def test_every_http_chain_names_the_four_policies_in_order(interception, mode):
    managers = list(
        every(
            render(inputs.everything(mode, interception)), http_connection_manager_pb2.HttpConnectionManager
        )
    )
    inbound = [manager for manager in managers if manager.stat_prefix.startswith("inbound")]
    assert inbound
    for manager in inbound:
        names = [item.name for item in manager.http_filters]
        assert names == ["jwt", "authz-audit", "authz-deny", "authz-allow", "envoy.filters.http.router"]
    for manager in managers:
        if manager not in inbound:
            assert not any(item.name in extensions.HTTP_FILTERS for item in manager.http_filters)


@pytest.mark.parametrize(("interception", "mode"), EVERYTHING)
def test_cve_2019_12243_every_tcp_chain_has_the_rules(interception, mode):
    """Declared port or not, mutual TLS or not; and no listener has a default chain."""
    for resource in render(inputs.everything(mode, interception)).of_type(LISTENER).values():
        listener = decode(resource)
        assert not listener.HasField("default_filter_chain")
        for chain in listener.filter_chains:
            names = [item.name for item in chain.filters]
            if "envoy.filters.network.tcp_proxy" in names and chain.name.startswith("inbound"):
                assert names[:-1] == [
                    "envoy.filters.network.rbac.authz-audit",
                    "envoy.filters.network.rbac.authz-deny",
                    "envoy.filters.network.rbac.authz-allow",
                ]


@pytest.mark.parametrize(("interception", "mode"), EVERYTHING)
@pytest.mark.parametrize(("most", "least"), [(43_200, 38_880.0), (1, 0.9)], ids=["half-a-day", "one-second"])
def test_p10_connections_of_one_age_do_not_end_together(interception, mode, most, least):
    """With the jitter on top they end before the bound, which is what people are told."""
    proxy = inputs.everything(mode, interception)
    proxy = replace(proxy, mesh=replace(proxy.mesh, max_connection_seconds=most))
    found = list(every(render(proxy), protocol_pb2.HttpProtocolOptions))
    managers = list(every(render(proxy), http_connection_manager_pb2.HttpConnectionManager))
    assert len(found) == len(managers) > 0
    for options in found:
        (field,) = UnknownFieldSet(options)
        jitter = percent_pb2.Percent.FromString(field.data).value
        shortest = options.max_connection_duration.ToTimedelta().total_seconds()
        assert (field.field_number, shortest, jitter) == (filters.JITTER_FIELD, least, 10)
        assert shortest * (1 + jitter / 100) <= most


def test_p10_no_age_no_jitter():
    proxy = inputs.everything()
    proxy = replace(proxy, mesh=replace(proxy.mesh, max_connection_seconds=0))
    assert not list(every(render(proxy), protocol_pb2.HttpProtocolOptions))


def test_p10_the_jitter_is_still_missing_in_the_published_messages():
    """Once they have it: set the field itself, take `add_unpublished` out, and let golden files show it."""
    assert "max_connection_duration_jitter" not in protocol_pb2.HttpProtocolOptions.DESCRIPTOR.fields_by_name


def test_an_unpublished_field_is_short_enough_for_the_way_it_is_written():
    with pytest.raises(AssertionError, match="one byte each"):
        m.add_unpublished(protocol_pb2.HttpProtocolOptions(), 16, percent_pb2.Percent(value=1))


def test_rendering_is_deterministic():
    first, second = (render(inputs.everything()) for _ in range(2))
    assert [(r.name, r.version) for r in first] == [(r.name, r.version) for r in second]


@pytest.mark.parametrize("interception", Interception, ids=lambda i: i.value)
def test_a_cache_changes_nothing_but_the_cost(interception):
    cache = RenderCache()
    proxy = inputs.everything(interception=interception)
    without = render(proxy)
    for _ in range(2):
        assert list(render(proxy, cache)) == list(without)
    assert cache.hits > 0


def test_workloads_under_the_same_policy_share_bytes():
    cache = RenderCache()
    proxy = inputs.everything()
    other = replace(proxy, workload=replace(proxy.workload, name="other", address="127.0.10.9", egress=()))
    first, second = render(proxy, cache), render(other, cache)
    for name in extensions.HTTP_FILTERS:
        assert second.of_type(EXTENSION_CONFIG)[name] is first.of_type(EXTENSION_CONFIG)[name]
    listeners = [s.of_type(LISTENER)["inbound|8080"] for s in (first, second)]
    assert listeners[0].body != listeners[1].body
    assert decode(listeners[1]).address.socket_address.address == "127.0.10.9"
    assert decode(listeners[1]).filter_chains == decode(listeners[0]).filter_chains


def test_an_equal_rule_compiled_again_is_not_rendered_again():
    cache = RenderCache()
    proxy = inputs.everything()
    render(proxy, cache)
    misses = cache.misses
    again = replace(proxy.policy, authz=AuthzPolicy(replace(inputs.HTTP_RULES), inputs.TCP_RULES))
    assert list(render(replace(proxy, policy=again), cache)) == list(render(proxy))
    assert cache.misses == misses + 1  # the set of resources, from rules that were there


def test_new_endpoints_change_one_resource():
    proxy = inputs.everything()
    cache = RenderCache()
    before = render(proxy, cache)
    found = proxy.services[0].service
    port = found.ports[0]
    moved = replace(port, endpoints=(inputs.endpoint("127.0.10.77"), *port.endpoints))
    service = replace(found, ports=(moved, *found.ports[1:]))
    after = render(replace(proxy, services=(OutboundService(service, proxy.services[0].mtls),)), cache)
    changed = {(r.type_url, r.name) for r in after if before.of_type(r.type_url)[r.name].version != r.version}
    assert changed == {(ENDPOINT, f"outbound|9080||{inputs.REVIEWS}")}


def test_a_new_service_account_changes_the_cluster_too():
    """Secure naming: the cluster has to know the name before the endpoint comes."""
    proxy = inputs.everything()
    found = proxy.services[0].service
    port = found.ports[0]
    moved = replace(port, endpoints=(inputs.endpoint("127.0.10.77", account="other"), *port.endpoints))
    service = replace(found, ports=(moved, *found.ports[1:]))
    before, after = (
        render(p)
        for p in (proxy, replace(proxy, services=(OutboundService(service, proxy.services[0].mtls),)))
    )
    changed = {(r.type_url, r.name) for r in after if before.of_type(r.type_url)[r.name].version != r.version}
    name = f"outbound|9080||{inputs.REVIEWS}"
    assert changed == {(ENDPOINT, name), (CLUSTER, name)}


def test_cache_is_bounded_and_forgets_the_oldest():
    cache = RenderCache(2)
    built = []

    def build(key):
        built.append(key)
        return key

    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.by_value(key, lambda key=key: build(key)) == key
    assert built == ["a", "b", "c", "b"]
    assert len(cache) == 2


def test_cache_by_identity_keeps_its_source_alive():
    """An identity could otherwise be given to another object and find the wrong part."""
    cache = RenderCache()
    for number in range(100):
        source = [number]
        assert cache.by_identity("kind", source, lambda number=number: number) == number
        del source


class TestExplicit:
    def test_only_services_with_an_egress_listener_cost_anything(self):
        proxy = inputs.everything()
        extra = OutboundService(replace(proxy.services[0].service, host="other.demo.svc.cluster.local"))
        more = render(replace(proxy, services=(*proxy.services, extra)))
        assert list(more) == list(render(proxy))

    def test_unknown_service_is_not_opened_but_reported(self):
        lost = (
            EgressListener(bind=SocketAddress("127.0.10.1", 1), service="nobody.example", port=80),
            EgressListener(bind=SocketAddress("127.0.10.1", 2), service=inputs.REVIEWS, port=4444),
        )
        proxy = inputs.everything()
        proxy = replace(proxy, workload=replace(proxy.workload, egress=(*lost, *proxy.workload.egress)))
        assert missing_services(proxy) == lost
        names = render(proxy).of_type(LISTENER)
        assert "outbound|127.0.10.1:9080" in names
        assert not {"outbound|127.0.10.1:1", "outbound|127.0.10.1:2"} & set(names)

    def test_no_routes_by_rds(self):
        assert not render(inputs.everything()).of_type(ROUTE)

    def test_one_service_at_two_addresses_has_one_cluster(self):
        twice = (
            *inputs.egress(1),
            EgressListener(bind=SocketAddress("127.0.10.1", 7), service=inputs.REVIEWS, port=9080),
        )
        proxy = inputs.everything()
        resources = render(replace(proxy, workload=replace(proxy.workload, egress=twice)))
        assert sorted(n for n in resources.of_type(CLUSTER) if n.startswith("outbound")) == [
            f"outbound|9080||{inputs.REVIEWS}"
        ]


class TestRedirect:
    def resources(self, *services: Service, **mesh):
        web = inputs.workload(AppProtocol.HTTP, interception=Interception.REDIRECT)
        found = tuple(OutboundService(service) for service in services)
        return render(ProxyInput(web, EffectivePolicy(), found, replace(inputs.MESH, **mesh)))

    def domains(self, resources, port="9080"):
        config = decode(resources.of_type(ROUTE)[port])
        return {host.name: list(host.domains) for host in config.virtual_hosts}

    def test_short_names_only_within_the_namespace(self):
        here = inputs.service(AppProtocol.HTTP)
        there = replace(here, host="reviews.other.svc.cluster.local", namespace="other")
        domains = self.domains(self.resources(here, there))
        assert "reviews" in domains[here.host]
        assert "reviews" not in domains[there.host]
        assert domains[there.host] == [
            "reviews.other.svc.cluster.local",
            "reviews.other.svc.cluster.local.",
            "reviews.other.svc",
            "reviews.other",
        ]

    def test_no_domain_twice(self):
        """Envoy refuses a route configuration with a domain in two hosts."""
        here = inputs.service(AppProtocol.HTTP, addresses=("10.0.0.1",))
        thief = replace(here, host="reviews.demo", addresses=("10.0.0.1",))
        domains = self.domains(self.resources(thief, here))
        flat = [name for names in domains.values() for name in names]
        assert len(flat) == len(set(flat))
        assert domains["reviews.demo"][0] == "reviews.demo"  # a full name beats a short form

    def test_a_service_without_any_domain_left_is_left_out(self):
        here = inputs.service(AppProtocol.HTTP, addresses=("fd00::1",))
        domains = self.domains(self.resources(here))
        assert "[fd00::1]" in domains[here.host]

    def test_order_of_services_does_not_matter(self):
        services = [
            replace(inputs.service(AppProtocol.HTTP), host=f"{name}.demo.svc.cluster.local") for name in "abc"
        ]
        one, two = self.resources(*services), self.resources(*reversed(services))
        assert one.of_type(ROUTE)["9080"] == two.of_type(ROUTE)["9080"]

    def test_unknown_hosts(self):
        allow = self.domains(self.resources(inputs.service(AppProtocol.HTTP)))
        block = self.domains(
            self.resources(inputs.service(AppProtocol.HTTP), outbound_policy=OutboundPolicy.REGISTRY_ONLY)
        )
        assert "allow-any" in allow
        assert "block-all" in block

    def headless(self, name: str, protocol=AppProtocol.TCP) -> OutboundService:
        found = replace(inputs.service(protocol), host=f"{name}.demo.svc.cluster.local", headless=True)
        return OutboundService(found, frozenset(e.address for e in found.ports[0].endpoints))

    def test_a_pod_of_two_headless_services_has_one_listener(self):
        """`db` and `db-headless` select the same pods: Envoy refuses two listeners of one name."""
        web = inputs.workload(AppProtocol.HTTP, interception=Interception.REDIRECT)
        services = (self.headless("db"), self.headless("db-headless"))
        found = render(ProxyInput(web, EffectivePolicy(), services, inputs.MESH))
        pods = {f"{e.address.host}_{e.address.port}" for e in services[0].service.ports[0].endpoints}
        assert pods
        assert pods <= set(found.of_type(LISTENER))
        names = set(found.of_type(CLUSTER))
        assert "outbound|9080|direct|db.demo.svc.cluster.local" in names
        assert not any("direct|db-headless" in name for name in names)
        assert not any(name.startswith("outbound|9080||db") for name in names), (
            "nothing asks for a balanced one"
        )

    @pytest.mark.parametrize(
        ("policy", "listeners"), [(OutboundPolicy.ALLOW_ANY, 0), (OutboundPolicy.REGISTRY_ONLY, 2)]
    )
    def test_a_headless_service_outside_the_mesh_costs_only_where_it_must_be_known(self, policy, listeners):
        web = inputs.workload(AppProtocol.HTTP, interception=Interception.REDIRECT)
        plain = OutboundService(self.headless("exporter").service, frozenset())
        mesh = replace(inputs.MESH, outbound_policy=policy)
        found = render(ProxyInput(web, EffectivePolicy(), (plain,), mesh))
        assert sum(name.startswith("127.0.10.") for name in found.of_type(LISTENER)) == listeners
        assert not any("direct" in name for name in found.of_type(CLUSTER))

    def test_a_headless_service_is_balanced_by_its_name_for_http_only(self):
        web = inputs.workload(AppProtocol.HTTP, interception=Interception.REDIRECT)
        found = render(
            ProxyInput(web, EffectivePolicy(), (self.headless("web", AppProtocol.HTTP),), inputs.MESH)
        )
        assert "outbound|9080||web.demo.svc.cluster.local" in found.of_type(CLUSTER)
        assert "web.demo.svc.cluster.local" in self.domains(found)

    @pytest.mark.parametrize(("address", "bind"), [("10.1.2.3", "0.0.0.0"), ("fd00::1", "::")])
    def test_family_of_the_capture_listeners(self, address, bind):
        web = replace(inputs.workload(interception=Interception.REDIRECT), address=address)
        found = render(ProxyInput(web, EffectivePolicy(), (), inputs.MESH)).of_type(LISTENER)
        for name, port in (("virtualInbound", 15006), ("virtualOutbound", 15001)):
            where = decode(found[name]).address.socket_address
            assert (where.address, where.port_value, where.ipv4_compat) == (bind, port, bind == "::")

    def test_clusters_of_every_service_in_scope(self):
        names = self.resources(inputs.service(*AppProtocol)).of_type(CLUSTER)
        assert {f"outbound|{9080 + i}||{inputs.REVIEWS}" for i in range(4)} <= set(names)
        assert {"BlackHoleCluster", "PassthroughCluster", "InboundPassthroughCluster"} <= set(names)


def test_a_rule_with_the_key_of_another_is_refused():
    """A map would silently lose one of them: with DENY that opens a door."""
    twice = RuleSets(deny=(inputs.rule(Always(), Always()), inputs.rule(PeerUri(inputs.PRESENT), Always())))
    proxy = ProxyInput(inputs.workload(), EffectivePolicy(authz=AuthzPolicy(http=twice)), (), inputs.MESH)
    with pytest.raises(m.RenderError, match="2 rules have the key") as caught:
        render(proxy)
    assert caught.value.code is m.RenderCode.DUPLICATE_RULE


def test_a_region_with_an_unknown_provider_is_refused():
    tokens = JwtPolicy(regions=(JwtRegion(providers=("nobody",)),))
    with pytest.raises(m.RenderError, match="unknown provider 'nobody'") as caught:
        render(ProxyInput(inputs.workload(), EffectivePolicy(jwt=tokens), (), inputs.MESH))
    assert caught.value.code is m.RenderCode.OPTION
