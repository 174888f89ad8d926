"""File-mode documents: what is accepted, and where and why the rest is refused."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.meshconfig import ForwardClientCert, MeshConfig, PathNormalization
from mesh.policy.effective import Severity
from mesh.spiffe import TrustDomain
from mesh.topology import AppProtocol, EgressListener, SocketAddress
from mesh.yamldoc import Document, load_documents
from nodeagent.core.documents import (
    DocumentKey,
    KeySetSpec,
    ServiceSpec,
    WorkloadSpec,
    identify,
    is_policy,
    parse_document,
)
from nodeagent.core.fields import DocumentCode

WORKLOAD = """
apiVersion: gatehouse.dev/v1alpha1
kind: Workload
metadata: {namespace: demo, name: web, labels: {app: web, "example.com/tier": front}}
spec:
  serviceAccount: web
  tokenFile: ../tokens/web.jwt
  address: 127.0.10.1
  ports:
    - {number: 8080, protocol: HTTP, name: http, app: "127.0.0.1:18080"}
    - {number: 3306, protocol: TCP, app: "127.0.0.1:13306", serverFirst: true}
  egress:
    - {bind: "127.0.10.1:9080", service: reviews.demo.svc.cluster.local, port: 9080}
"""
SERVICE = """
apiVersion: gatehouse.dev/v1alpha1
kind: Service
metadata: {namespace: demo, name: reviews}
spec:
  selector: {app: reviews}
  ports:
    - {number: 80, protocol: HTTP, name: http, targetPort: 9080}
    - {number: 81, targetPort: metrics}
"""
BY_HAND = """
apiVersion: gatehouse.dev/v1alpha1
kind: Service
metadata: {namespace: demo, name: ratings}
spec:
  host: ratings.example
  ports:
    - number: 9080
      protocol: HTTP2
      endpoints:
        - {address: "127.0.10.2:9080", serviceAccount: ratings, namespace: other, inMesh: true}
        - {address: "[::1]:9081", healthy: false}
"""
KEY_SET = """
apiVersion: gatehouse.dev/v1alpha1
kind: KeySet
metadata: {name: demo-issuer}
spec: {issuer: "https://issuer.demo", jwksUri: "https://issuer.demo/jwks", file: ../keys/issuer.json}
"""
MESH = """
apiVersion: gatehouse.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec:
  trustDomain: example.org
  trustDomainAliases: [old.example.org]
  rootNamespace: mesh-root
  pathNormalization: BASE
  forwardClientCert: APPEND_FORWARD
  jwtRequireExpiration: true
  jwtClockSkewSeconds: 5
  drainSeconds: 3
"""


def doc(text: str) -> Document:
    (only,) = load_documents(textwrap.dedent(text), "demo.yaml")
    return only


def good(text: str):
    spec, findings = parse_document(doc(text))
    assert findings == ()
    assert spec is not None
    return spec


def test_workload() -> None:
    spec = good(WORKLOAD)
    assert isinstance(spec, WorkloadSpec)
    assert spec.token_file == "../tokens/web.jwt"
    workload = spec.workload
    assert (workload.uid, workload.service_account) == ("demo/web", "web")
    assert workload.labels == {"app": "web", "example.com/tier": "front"}
    assert workload.ports[0].app == SocketAddress("127.0.0.1", 18080)
    assert workload.ports[0].protocol is AppProtocol.HTTP
    assert workload.ports[1].server_first
    assert workload.egress == (
        EgressListener(
            bind=SocketAddress("127.0.10.1", 9080), service="reviews.demo.svc.cluster.local", port=9080
        ),
    )


def test_workload_uid() -> None:
    spec = good(WORKLOAD.replace("spec:\n", "spec:\n  uid: 4b1c-77\n"))
    assert isinstance(spec, WorkloadSpec)
    assert spec.workload.uid == "4b1c-77"


def test_service_with_selector() -> None:
    spec = good(SERVICE)
    assert isinstance(spec, ServiceSpec)
    assert spec.host == "reviews.demo.svc.cluster.local"
    assert spec.selector == {"app": "reviews"}
    assert [(p.number, p.target, p.endpoints) for p in spec.ports] == [
        (80, 9080, None),
        (81, "metrics", None),
    ]
    assert spec.ports[1].protocol is AppProtocol.AUTO


def test_service_with_endpoints() -> None:
    spec = good(BY_HAND)
    assert isinstance(spec, ServiceSpec)
    assert spec.host == "ratings.example"
    first, second = spec.ports[0].endpoints or ()
    assert (first.namespace, first.service_account, first.in_mesh) == ("other", "ratings", True)
    assert (second.address, second.namespace, second.in_mesh, second.healthy) == (
        SocketAddress("::1", 9081),
        "demo",
        False,
        False,
    )


def test_key_set() -> None:
    assert good(KEY_SET) == KeySetSpec(
        name="demo-issuer",
        issuer="https://issuer.demo",
        address="https://issuer.demo/jwks",
        file="../keys/issuer.json",
    )


def test_key_set_of_an_issuer_alone() -> None:
    """For rules without jwksUri: a node fetches nothing, so the keys that discovery finds are given."""
    spec = good(KEY_SET.replace('jwksUri: "https://issuer.demo/jwks", ', ""))
    assert isinstance(spec, KeySetSpec)
    assert spec.address == "https://issuer.demo/.well-known/openid-configuration"


def test_mesh() -> None:
    assert good(MESH) == MeshConfig(
        trust_domain=TrustDomain("example.org"),
        trust_domain_aliases=(TrustDomain("old.example.org"),),
        root_namespace="mesh-root",
        path_normalization=PathNormalization.BASE,
        forward_client_cert=ForwardClientCert.APPEND_FORWARD,
        jwt_require_expiration=True,
        jwt_clock_skew_seconds=5,
        drain_seconds=3,
    )


def test_mesh_defaults() -> None:
    short = MESH.split("  trustDomainAliases", maxsplit=1)[0]
    assert good(short) == MeshConfig(trust_domain=TrustDomain("example.org"))


BAD = [
    ("typo", WORKLOAD.replace("tokenFile", "tokenfile"), 7, DocumentCode.UNKNOWN, "did you mean 'tokenFile'"),
    ("unknown", KEY_SET.replace("{issuer", "{zzz: 1, issuer"), 5, DocumentCode.UNKNOWN, "known are file"),
    (
        "no-account",
        WORKLOAD.replace("  serviceAccount: web\n", ""),
        5,
        DocumentCode.MISSING,
        "serviceAccount",
    ),
    ("account", WORKLOAD.replace("Account: web", "Account: Web_"), 6, DocumentCode.VALUE, "RFC 1123"),
    ("namespace", WORKLOAD.replace("demo, name", "a.b, name"), 4, DocumentCode.VALUE, "at most 63"),
    (
        "no-namespace",
        WORKLOAD.replace("namespace: demo, ", ""),
        4,
        DocumentCode.MISSING,
        "part of the identity",
    ),
    (
        "newline",
        WORKLOAD.replace("namespace: demo", 'namespace: "demo\\n"'),
        4,
        DocumentCode.VALUE,
        "lower-case",
    ),
    ("no-name", WORKLOAD.replace("name: web,", ""), 4, DocumentCode.MISSING, "name is missing"),
    ("address-name", WORKLOAD.replace("127.0.10.1\n", "localhost\n"), 8, DocumentCode.VALUE, "an IP address"),
    ("address-type", WORKLOAD.replace("127.0.10.1\n", "12\n"), 8, DocumentCode.TYPE, "must be text"),
    ("app", WORKLOAD.replace('"127.0.0.1:18080"', '"127.0.0.1"'), 10, DocumentCode.VALUE, "and a port"),
    ("app-port", WORKLOAD.replace("1:18080", "1:70000"), 10, DocumentCode.VALUE, "and a port"),
    ("app-v6", WORKLOAD.replace("127.0.0.1:18080", "::1:80"), 10, DocumentCode.VALUE, "[::1]:8080"),
    ("protocol", WORKLOAD.replace("HTTP,", "http,"), 10, DocumentCode.VALUE, "HTTP, HTTP2, TCP, AUTO"),
    ("number", WORKLOAD.replace("number: 8080", "number: 65536"), 10, DocumentCode.VALUE, "1 to 65535"),
    ("number-bool", WORKLOAD.replace("number: 8080", "number: true"), 10, DocumentCode.TYPE, "whole number"),
    ("number-none", WORKLOAD.replace("number: 8080, ", ""), 10, DocumentCode.MISSING, "peers connect to"),
    (
        "same-port",
        WORKLOAD.replace("number: 3306", "number: 8080"),
        11,
        DocumentCode.DUPLICATE,
        "8080 is listed",
    ),
    ("bind-taken", WORKLOAD.replace("1:9080", "1:8080"), 13, DocumentCode.DUPLICATE, "taken by port 8080"),
    ("app-is-bind", WORKLOAD.replace("0.1:18080", "10.1:8080"), 10, DocumentCode.VALUE, "listen elsewhere"),
    (
        "egress-service",
        WORKLOAD.replace("service: reviews", "service: -x"),
        13,
        DocumentCode.VALUE,
        "lower-case",
    ),
    ("egress-bind", WORKLOAD.replace('bind: "127.0.10.1:9080", ', ""), 13, DocumentCode.MISSING, "finds the"),
    (
        "ports-map",
        WORKLOAD.replace("  ports:\n    - {", "  ports: {").split("    - ")[0],
        9,
        None,
        "must be a list",
    ),
    (
        "port-item",
        WORKLOAD.replace("- {number: 3306", "- 7\n    - {number: 3306"),
        11,
        DocumentCode.TYPE,
        "mapping",
    ),
    ("label-int", WORKLOAD.replace("app: web,", "app: 1,"), 4, DocumentCode.VALUE, "quote numbers"),
    ("label-name", WORKLOAD.replace("app: web,", "a b: web,"), 4, DocumentCode.VALUE, "not a label name"),
    ("uid", WORKLOAD.replace("spec:\n", 'spec:\n  uid: "a b"\n'), 6, DocumentCode.VALUE, "letters, digits"),
    ("kind", WORKLOAD.replace("kind: Workload", "kind: Wrkload"), 3, DocumentCode.KIND, "known are Mesh"),
    ("version", WORKLOAD.replace("v1alpha1", "v2"), 2, DocumentCode.API_VERSION, "gatehouse.dev/v1alpha1"),
    (
        "spec-list",
        MESH.split("spec:")[0] + "spec: []",
        5,
        DocumentCode.TYPE,
        "expected a mapping, found a list",
    ),
    ("no-spec", MESH.split("spec:")[0], 2, DocumentCode.MISSING, "trustDomain is missing"),
    ("trust-domain", MESH.replace("example.org\n", "Example.org\n", 1), 6, DocumentCode.VALUE, "lower case"),
    ("alias", MESH.replace("[old.example.org]", "[ok, 'x/y']"), 7, DocumentCode.VALUE, "trust domain"),
    ("alias-type", MESH.replace("[old.example.org]", "[1]"), 7, DocumentCode.TYPE, "expected text"),
    ("bool", MESH.replace("Expiration: true", "Expiration: 1"), 11, DocumentCode.TYPE, "true or false"),
    (
        "connection-age",
        MESH.replace("drainSeconds: 3", "maxConnectionSeconds: -1"),
        13,
        DocumentCode.VALUE,
        "0 to 31536000",
    ),
    ("drain", MESH.replace("drainSeconds: 3", "drainSeconds: 0"), 13, DocumentCode.VALUE, "1 to 3600"),
    ("neither", SERVICE.replace("  selector: {app: reviews}\n", ""), 7, DocumentCode.VALUE, "not neither"),
    ("both", BY_HAND.replace("  ports:", "  selector: {a: b}\n  ports:"), 11, DocumentCode.VALUE, "not both"),
    ("no-ports", SERVICE.split("  ports:")[0], 5, DocumentCode.MISSING, "at least one port"),
    ("service-number", SERVICE.replace("number: 80,", ""), 8, DocumentCode.MISSING, "this number"),
    ("target", SERVICE.replace("targetPort: metrics", "targetPort: 0"), 9, DocumentCode.VALUE, "1 to 65535"),
    (
        "target-name",
        SERVICE.replace("metrics", "Me_"),
        9,
        DocumentCode.VALUE,
        "name or number of a workload port",
    ),
    ("endpoint-id", BY_HAND.replace("serviceAccount: ratings, ", ""), 11, DocumentCode.MISSING, "must prove"),
    ("endpoint", BY_HAND.replace('address: "[::1]:9081", ', ""), 12, DocumentCode.MISSING, "127.0.10.2:9080"),
    ("same-endpoint", BY_HAND.replace("[::1]:9081", "127.0.10.2:9080"), 12, DocumentCode.DUPLICATE, "twice"),
    (
        "key-file",
        KEY_SET.replace(", file: ../keys/issuer.json", ""),
        5,
        DocumentCode.MISSING,
        "JSON Web Key Set",
    ),
    (
        "key-address",
        KEY_SET.replace('issuer: "https://issuer.demo", jwksUri: "https://issuer.demo/jwks", ', ""),
        5,
        DocumentCode.MISSING,
        "jwksUri is missing",
    ),
    (
        "key-issuer",
        KEY_SET.replace('"https://issuer.demo", jwksUri: "https://issuer.demo/jwks"', "me@issuer.demo"),
        5,
        DocumentCode.VALUE,
        "allowed without jwksUri: an http:// or https:// address",
    ),
]


@pytest.mark.parametrize(
    ("text", "line", "code", "message"), [pytest.param(*case[1:], id=case[0]) for case in BAD]
)
def test_refusals_name_file_line_and_field(
    text: str, line: int, code: DocumentCode | None, message: str
) -> None:
    spec, findings = parse_document(doc(text))
    assert spec is None
    hits = [f for f in findings if message in f.message]
    assert hits, [f.message for f in findings]
    (hit,) = hits[:1]
    assert hit.severity is Severity.ERROR
    assert code is None or hit.code is code
    assert hit.place == f"demo.yaml:{line}"
    assert hit.field


def test_all_faults_of_a_document_are_reported_at_once() -> None:
    broken = WORKLOAD.replace("number: 8080", "number: 0").replace("address: 127.0.10.1", "address: x")
    _, findings = parse_document(doc(broken))
    assert {f.field for f in findings} == {"spec.address", "spec.ports[0].number"}
    assert all(str(f.ref) == "Workload demo/web" for f in findings)


def test_too_many_items_are_refused() -> None:
    many = "[" + ",".join(f"a{n}" for n in range(5000)) + "]"
    _, findings = parse_document(doc(MESH.replace("[old.example.org]", many)))
    assert [f.message for f in findings] == ["trustDomainAliases has 5000 items; allowed: 4096"]


def test_long_text_is_refused() -> None:
    _, findings = parse_document(doc(KEY_SET.replace("../keys", "k" * 3000)))
    assert "at most 2048 characters" in findings[0].message


@pytest.mark.parametrize("text", ["- 1", "just text", "{a: 1}"], ids=["list", "text", "no-kind"])
def test_documents_of_another_shape(text: str) -> None:
    spec, findings = parse_document(doc(text))
    assert spec is None
    assert findings


def test_identify() -> None:
    assert identify(doc(WORKLOAD)) == DocumentKey("Workload", "demo", "web")
    assert identify(doc(MESH)) == DocumentKey("Mesh", "", "mesh")
    assert identify(doc("{kind: X}")) is None
    assert identify(doc("{kind: X, metadata: {name: ''}}")) is None
    assert identify(doc("{kind: X, metadata: {name: 3}}")) is None
    assert identify(doc("[]")) is None


def test_policies_are_told_by_their_api() -> None:
    assert is_policy(doc("{apiVersion: security.istio.io/v1}"))
    assert not is_policy(doc(WORKLOAD))
    assert not is_policy(doc("text"))


scalars = st.sampled_from([None, True, 0, -1, 70000, "", "a", "A b", "127.0.0.1", "127.0.0.1:80", "\n"])
json_values = (
    scalars
    | st.lists(scalars, max_size=2)
    | st.lists(
        st.dictionaries(st.sampled_from(["number", "app", "bind", "endpoints", "x"]), scalars, max_size=3),
        max_size=2,
    )
)
FIELDS = ["trustDomain", "serviceAccount", "tokenFile", "address", "ports", "egress", "selector", "host"]


@given(
    kind=st.sampled_from(["Mesh", "Workload", "Service", "KeySet"]),
    spec=st.dictionaries(st.sampled_from(FIELDS), json_values),
    metadata=st.dictionaries(st.sampled_from(["name", "namespace", "labels"]), json_values),
)
def test_no_document_raises_or_is_refused_in_silence(kind, spec, metadata) -> None:
    import json

    text = json.dumps(
        {"apiVersion": "gatehouse.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    )
    value, findings = parse_document(doc(text))
    assert (value is None) == bool(findings)
