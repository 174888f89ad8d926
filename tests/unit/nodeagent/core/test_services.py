"""Selectors become endpoints; a workload sees what it declares (D8c)."""

from __future__ import annotations

from mesh.topology import AppProtocol, SocketAddress
from nodeagent.core.directory import Directory, World
from nodeagent.core.fields import DocumentCode
from nodeagent.core.services import build_services, check_references, scope

WORLD = """
apiVersion: gatehouse.dev/v1alpha1
kind: Workload
metadata: {namespace: demo, name: reviews-1, labels: {app: reviews, version: v1}}
spec:
  {serviceAccount: reviews, tokenFile: t, address: 127.0.10.2, ports: [
    {number: 9080, protocol: HTTP, name: web, app: "127.0.0.1:1"}, {number: 9090, app: "127.0.0.1:2"}]}
---
apiVersion: gatehouse.dev/v1alpha1
kind: Workload
metadata: {namespace: demo, name: reviews-2, labels: {app: reviews, version: v2}}
spec: {serviceAccount: other, tokenFile: t, address: 127.0.10.3, ports: [{number: 9080, app: "127.0.0.1:3"}]}
---
apiVersion: gatehouse.dev/v1alpha1
kind: Workload
metadata: {namespace: elsewhere, name: reviews, labels: {app: reviews}}
spec:
  serviceAccount: reviews
  tokenFile: t
  address: 127.0.10.4
  ports: [{number: 9080, app: "127.0.0.1:4"}]
  egress:
    - {bind: "127.0.10.4:1000", service: reviews.demo.svc.cluster.local, port: 80}
    - {bind: "127.0.10.4:1001", service: reviews.demo.svc.cluster.local, port: 99}
    - {bind: "127.0.10.4:1002", service: nowhere.example, port: 80}
---
apiVersion: gatehouse.dev/v1alpha1
kind: Service
metadata: {namespace: demo, name: reviews}
spec:
  selector: {app: reviews}
  ports:
    - {number: 80, protocol: HTTP, targetPort: 9080}
    - {number: 81, targetPort: web}
    - {number: 82, targetPort: 7}
---
apiVersion: gatehouse.dev/v1alpha1
kind: Service
metadata: {namespace: demo, name: by-hand}
spec: {host: hand.example, external: true, ports: [{number: 443, endpoints: [{address: "10.0.0.1:443"}]}]}
"""


def world() -> World:
    found = Directory().update({"w.yaml": WORLD})
    assert found.findings == ()
    return found


def test_a_selector_finds_workloads_of_its_namespace() -> None:
    reviews, hand = build_services(world())
    first = reviews.ports[0]
    assert first.protocol is AppProtocol.HTTP
    assert [(str(e.address), e.service_account) for e in first.endpoints] == [
        ("127.0.10.2:9080", "reviews"),
        ("127.0.10.3:9080", "other"),
    ]
    assert first.endpoints[0].labels == {"app": "reviews", "version": "v1"}
    assert [str(e.address) for e in reviews.ports[1].endpoints] == ["127.0.10.2:9080"]  # by port name
    assert reviews.ports[2].endpoints == ()
    assert (hand.external, hand.ports[0].endpoints[0].address) == (True, SocketAddress("10.0.0.1", 443))
    assert not hand.ports[0].endpoints[0].in_mesh


def test_only_declared_services_are_in_scope() -> None:
    services = build_services(world())
    elsewhere = world().workloads[2].workload
    assert [s.host for s in scope(elsewhere, services)] == ["reviews.demo.svc.cluster.local"]
    assert scope(world().workloads[0].workload, services) == ()


def test_references_that_lead_nowhere_are_reported() -> None:
    found = check_references(world(), build_services(world()))
    assert {f.code for f in found} == {DocumentCode.REFERENCE}
    assert [(str(f.ref), f.field) for f in found] == [
        ("Workload elsewhere/reviews", "spec.egress[1]"),
        ("Workload elsewhere/reviews", "spec.egress[2]"),
        ("Service demo/reviews", "spec.ports[2]"),
    ]
    assert "has no port 99 (it has 80, 81, 82)" in found[0].message
    assert "no Service with the host nowhere.example" in found[1].message
    assert "has no endpoint" in found[2].message
    assert all(f.place.startswith("w.yaml:") for f in found)
