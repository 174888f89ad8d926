"""The authority on Kubernetes, put together: issuing, outages, readiness, DNS grants, publishing."""

from __future__ import annotations

import datetime as dt
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ca import check
from ca import config as configuration
from ca.authn import AuthnCode
from ca.config import ConfigError
from ca.runtime import Runtime
from mesh.kube.api import KubeError
from mesh.settings import SettingsError
from tests.fakes import ca_tokens
from tests.fakes.ca_cluster import ISSUER, NAMESPACE, cluster_ca, load, pod, prepare, until
from tests.fakes.ca_factory import new_key
from tests.fakes.ca_running import audit_lines
from tests.fakes.kube_api import FakeKube
from tests.fakes.rights import compare

WEB = "spiffe://cluster.local/ns/demo/sa/web"
INJECTOR = "spiffe://cluster.local/ns/istio-system/sa/gatehouse-injector"
DNS = ("gatehouse-injector.istio-system.svc", "gatehouse-injector.istio-system.svc.cluster.local")
UIDS = "aaaaaaaa-0000-4000-8000-00000000000"


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        prepare(server)
        yield server


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def _ready(runtime: Runtime) -> bool:
    return runtime.health.ready().ok


def test_issues_to_a_live_pod(kube: FakeKube, tmp_path: Path) -> None:
    kube.add(pod())
    with cluster_ca(kube, tmp_path) as ca:
        until(lambda: _ready(ca.runtime), "ready")
        answer = ca.client().create([ca.token()], ca.csr())
        assert answer.code is grpc.StatusCode.OK, answer.text
        san = answer.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert san.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]
        secret = kube.find("Secret", "gatehouse-ca", NAMESPACE)
        assert secret is not None
        assert secret["type"] == "gatehouse.dev/ca-root"
        text = _get(ca.runtime.plain.port, "/metrics")[1] if ca.runtime.plain else ""
        assert "gatehouse_ca_live_pods 1.0" in text
        assert 'gatehouse_ca_watch_relists_total{resource="pods"} 1.0' in text


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"uid": UIDS + "1"}, AuthnCode.POD_OTHER, id="F-46-recreated"),
        pytest.param({"name": "other"}, AuthnCode.POD_OTHER, id="other-account"),
        pytest.param({"pod": "never"}, AuthnCode.POD_UNKNOWN, id="never-seen"),
        pytest.param({"iss": ca_tokens.ISSUER}, AuthnCode.TOKEN_ISSUER, id="F-51-issuer"),
        pytest.param({"aud": ["https://kubernetes.default.svc"]}, AuthnCode.TOKEN_AUDIENCE, id="F-42"),
    ],
)
def test_refuses(kube: FakeKube, tmp_path: Path, changes: dict[str, object], code: AuthnCode) -> None:
    kube.add(pod())
    with cluster_ca(kube, tmp_path) as ca, audit_lines() as lines:
        until(lambda: _ready(ca.runtime), "ready")
        answer = ca.client().create([ca.token(**changes)], ca.csr())
        until(lambda: lines, "audited")
    wanted = grpc.StatusCode.UNAVAILABLE if code is AuthnCode.POD_UNKNOWN else grpc.StatusCode.UNAUTHENTICATED
    assert answer.code is wanted
    assert lines[0]["code"] == code


def test_deleted_pod_is_refused_at_once(kube: FakeKube, tmp_path: Path) -> None:
    """F-45."""
    kube.add(pod())
    with cluster_ca(kube, tmp_path) as ca, audit_lines() as lines:
        until(lambda: _ready(ca.runtime), "ready")
        kube.remove("Pod", "web-1", "demo")
        until(lambda: len(ca.runtime.cluster.pods) == 0, "gone")  # type: ignore[union-attr]  # on a cluster
        answer = ca.client().create([ca.token()], ca.csr())
        until(lambda: lines, "audited")
    assert answer.code is grpc.StatusCode.UNAUTHENTICATED
    assert lines[0]["code"] == AuthnCode.POD_GONE


def test_goes_on_while_the_api_server_is_away(kube: FakeKube, tmp_path: Path) -> None:
    """G-01: cached keys and pods serve; ready stays true, with the reason."""
    kube.add(pod())
    with cluster_ca(kube, tmp_path) as ca:
        until(lambda: _ready(ca.runtime), "ready")
        kube.stop()
        until(lambda: "no answer" in ca.runtime.health.ready().text(), "noticed")
        until(lambda: ca.runtime.cluster.pods_state()[1] is not None, "watch too")
        assert ca.client().create([ca.token()], ca.csr()).ok
        late = ca.client().create([ca.token(pod="new", uid=UIDS + "2")], ca.csr())
        assert late.code is grpc.StatusCode.UNAVAILABLE
        # A key that came during the outage; the last look at the keys is more than a moment ago.
        ca.runtime.jwks._asked = -100.0
        unknown = ca_tokens.token(ca.runtime.clock.now(), key_id="k9", iss=ISSUER)
        held = ca.client().create([("authorization", f"Bearer {unknown}")], ca.csr())
        assert held.code is grpc.StatusCode.UNAVAILABLE
        report = ca.runtime.health.ready()
        assert report.ok
        assert "no answer from the API server" in report.text()
        kube.restart()
        until(lambda: "no answer" not in ca.runtime.health.ready().text(), "recovered", 20)
        assert ca.client().create([ca.token()], ca.csr()).ok


def test_not_ready_before_the_pods_are_known(kube: FakeKube, tmp_path: Path) -> None:
    kube.add(pod())
    kube.fail(403, times=1000, path="/api/v1/pods")
    with cluster_ca(kube, tmp_path) as ca:
        until(lambda: ca.runtime.cluster.pods_state()[1] is not None, "failed")
        assert not _ready(ca.runtime)
        assert "pods of the cluster were not listed" in ca.runtime.health.ready().text()
        answer = ca.client().create([ca.token()], ca.csr())
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        kube.faults.clear()
        until(lambda: _ready(ca.runtime), "ready")


def test_new_key_of_the_cluster_works_at_once(kube: FakeKube, tmp_path: Path) -> None:
    kube.add(pod())
    kube.documents["/openid/v1/jwks"] = {"keys": [ca_tokens.jwk(ca_tokens.private_key("e1", "ES256"), "e1")]}
    with cluster_ca(kube, tmp_path) as ca:
        until(lambda: _ready(ca.runtime), "ready")
        keys = ca.runtime.jwks
        keys._asked = -100.0  # type: ignore[union-attr]  # long ago
        prepare(kube)
        assert ca.client().create([ca.token(key_id="k1")], ca.csr()).ok


def test_strict_option_asks_the_api_server(kube: FakeKube, tmp_path: Path) -> None:
    kube.add(pod())
    with cluster_ca(kube, tmp_path, cluster__token_review="true") as ca:
        until(lambda: _ready(ca.runtime), "ready")
        refused = ca.client().create([ca.token()], ca.csr())
        assert refused.code is grpc.StatusCode.UNAUTHENTICATED
        kube.token_review = lambda spec: {
            "authenticated": True,
            "audiences": spec["audiences"],
            "user": {
                "username": "system:serviceaccount:demo:web",
                "groups": ["system:serviceaccounts"],
                "extra": {"authentication.kubernetes.io/pod-uid": [ca_tokens.POD_UID]},
            },
        }
        assert ca.client().create([ca.token()], ca.csr()).ok
        kube.fail(500, path=".*tokenreviews")
        other = ca.token(jti="00000000-0000-4000-8000-000000000000")
        assert ca.client().create([other], ca.csr()).code is grpc.StatusCode.UNAVAILABLE


def test_roots_are_published_by_the_leader(kube: FakeKube, tmp_path: Path) -> None:
    kube.add({"kind": "ClusterRole", "metadata": {"name": "gatehouse-ca", "uid": "u-1"}})
    with cluster_ca(kube, tmp_path, cluster__owner_cluster_role="gatehouse-ca") as ca:
        until(lambda: kube.find("ConfigMap", "istio-ca-root-cert", "default"), "published")
        made = kube.find("ConfigMap", "istio-ca-root-cert", "default") or {}
        assert made["data"]["root-cert.pem"].encode() == ca.roots
        assert made["metadata"]["ownerReferences"][0]["uid"] == "u-1"
        until(lambda: not ca.runtime.cluster.publish_problem(), "good")
        ca.runtime.refresh_gauges()
    lease = kube.find("Lease", "gatehouse-ca", NAMESPACE)
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""  # released


def test_what_is_asked_of_the_api_server(kube: FakeKube, tmp_path: Path) -> None:
    """The rights that docs/ca.md lists, and no other."""
    kube.add(pod())
    kube.add({"kind": "ClusterRole", "metadata": {"name": "gatehouse-ca", "uid": "u-1"}})
    settings = {"cluster__owner_cluster_role": "gatehouse-ca", "cluster__token_review": "true"}
    with cluster_ca(kube, tmp_path, **settings) as ca:
        until(lambda: kube.find("ConfigMap", "istio-ca-root-cert", "default"), "published")
        kube.add({"kind": "ConfigMap", "metadata": {"name": "istio-ca-root-cert"}, "data": {}})
        until(
            lambda: (kube.find("ConfigMap", "istio-ca-root-cert", "default") or {}).get("data"),
            "repaired",
            15,
        )
        ca.client().create([ca.token()], ca.csr())
    asked = kube.verbs()
    everywhere = {(g, r, v) for n, g, r, v in asked if r in {"pods", "namespaces", "tokenreviews"}}
    everywhere |= {(g, r, v) for n, g, r, v in asked if r in {"clusterroles", "configmaps"}}
    own = {(g, r, v) for n, g, r, v in asked if n == NAMESPACE and r in {"secrets", "leases"}}
    assert {n for n, g, r, v in asked if (r, v) == ("configmaps", "update")} == {NAMESPACE}, (
        "what is said there"
    )
    everywhere -= {("", "configmaps", "update")}
    assert everywhere <= {
        ("", "pods", "list"),
        ("", "pods", "watch"),
        ("", "namespaces", "list"),
        ("", "namespaces", "watch"),
        ("", "configmaps", "list"),
        ("", "configmaps", "watch"),
        ("", "configmaps", "get"),
        ("", "configmaps", "create"),
        ("", "configmaps", "patch"),
        ("authentication.k8s.io", "tokenreviews", "create"),
        ("rbac.authorization.k8s.io", "clusterroles", "get"),
    }
    assert own == {
        ("", "secrets", "get"),
        ("", "secrets", "create"),
        ("coordination.k8s.io", "leases", "get"),
        ("coordination.k8s.io", "leases", "create"),
        ("coordination.k8s.io", "leases", "update"),
    }
    rest = {r for n, g, r, v in asked if g == "nonResourceURL"}
    discovery = {"/version", "/apis"}  # everybody may ask that
    assert rest == {"/openid/v1/jwks", "/.well-known/openid-configuration"} | discovery
    assert {n for n, g, r, v in asked if r == "secrets"} == {NAMESPACE}


def test_what_the_chart_grants_is_what_is_asked(tmp_path: Path) -> None:
    """With the empty objects that the chart brings, on a server that knows trust bundles."""
    with FakeKube(minor=33) as kube:
        prepare(kube)
        kube.add(pod())
        for kind in ("Secret", "ConfigMap", "Lease"):
            kube.add({"kind": kind, "metadata": {"name": "gatehouse-ca", "namespace": NAMESPACE}})
        shared = {"name": "gatehouse-ca-agents", "namespace": NAMESPACE}
        kube.add({"kind": "ConfigMap", "metadata": shared})
        kube.add({"kind": "ClusterRole", "metadata": {"name": "gatehouse-ca", "uid": "u-1"}})
        settings = {"cluster__owner_cluster_role": "gatehouse-ca", "cluster__token_review": "true"}
        settings["cluster__agents"] = f"{NAMESPACE}/gatehouse-nodeagent"
        with cluster_ca(kube, tmp_path, **settings) as ca:
            until(lambda: kube.find("ConfigMap", "istio-ca-root-cert", "default"), "published")
            until(lambda: kube.asked("GET", ".*/configmaps/gatehouse-ca-agents"), "read by the leader")
            until(lambda: kube.find("ClusterTrustBundle", "gatehouse.dev:ca:roots"), "published")
            ca.client().create([ca.token()], ca.csr())
        refused, unused = compare("ca", kube.requests, {"ca": {"tokenReview": True}})
    assert refused == set()
    assert unused <= {
        "attest certificates.k8s.io/signers gatehouse.dev/ca",  # the API server asks for it, on a create
        "create coordination.k8s.io/leases",  # when somebody has deleted the chart's
        "patch /configmaps gatehouse-ca-agents",  # when a node agent reports
        "patch /configmaps istio-ca-root-cert",  # when somebody has changed it, or the roots change
        "patch certificates.k8s.io/clustertrustbundles gatehouse.dev:ca:roots",
    }


def test_plugged_in_ca_works_as_without_a_cluster(kube: FakeKube, tmp_path: Path) -> None:
    from tests.fakes.ca_factory import make_hierarchy

    plugged = tmp_path / "cacerts"
    plugged.mkdir()
    now = dt.datetime.now(dt.UTC)
    make_hierarchy(now=now).write_cacerts(plugged)
    kube.add(pod())
    with cluster_ca(kube, tmp_path, ca_dir=str(plugged)) as ca:
        until(lambda: _ready(ca.runtime), "ready")
        assert ca.client().create([ca.token()], ca.csr()).ok
        until(lambda: kube.find("ConfigMap", "istio-ca-root-cert", "demo"), "published")
        assert kube.all("Secret") == []


def _csr(uris: list[str], dns: list[str], *others: x509.GeneralName) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns), *others]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def _grants(tmp_path: Path) -> Path:
    file = tmp_path / "grants.yaml"
    account = "istio-system/gatehouse-injector"
    file.write_text(f"serving_grants: [{{service_account: {account}, dns: [{', '.join(DNS)}]}}]\n")
    return file


@pytest.mark.parametrize(
    ("account", "csr", "dns", "code"),
    [
        pytest.param("i", _csr([INJECTOR], list(DNS)), DNS, None, id="X-03-uri-and-dns"),
        pytest.param("i", _csr([], list(DNS[::-1])), DNS, None, id="X-03-dns-in-any-order"),
        pytest.param("i", _csr([INJECTOR], []), (), None, id="uri-only"),
        pytest.param("i", _csr([], []), (), None, id="none"),
        pytest.param("i", _csr([INJECTOR], [DNS[0]]), (), "csr_san_mismatch", id="some"),
        pytest.param("i", _csr([], [*DNS, "evil.test"]), (), "csr_san_mismatch", id="more"),
        pytest.param("i", _csr([], [*DNS, DNS[0]]), (), "csr_san_mismatch", id="twice"),
        pytest.param("i", _csr([INJECTOR, INJECTOR], list(DNS)), (), "csr_san_mismatch", id="uri-twice"),
        pytest.param(
            "i", _csr([], list(DNS), x509.RFC822Name("a@b.test")), (), "csr_san_mismatch", id="F-02-email"
        ),
        pytest.param("i", _csr([WEB], list(DNS)), (), "spoof_attempt", id="F-03-other-identity"),
        pytest.param("w", _csr([WEB], list(DNS)), (), "csr_san_mismatch", id="F-01-nobody-else"),
        pytest.param("w", _csr([INJECTOR], list(DNS)), (), "spoof_attempt", id="F-01-spoof"),
    ],
)
def test_serving_grants(
    kube: FakeKube, tmp_path: Path, account: str, csr: str, dns: tuple[str, ...], code: str | None
) -> None:
    kube.add(pod())
    injector = pod("inj", uid=UIDS + "7", account="gatehouse-injector", meta={"namespace": NAMESPACE})
    kube.add(injector)
    with cluster_ca(kube, tmp_path, file=_grants(tmp_path)) as ca:
        until(lambda: _ready(ca.runtime), "ready")
        token = (
            ca.token(namespace=NAMESPACE, name="gatehouse-injector", pod="inj", uid=UIDS + "7")
            if account == "i"
            else ca.token()
        )
        answer = ca.client().create([token], csr)
        if code is not None:
            assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, code)
            return
        assert answer.ok, answer.text
        san = answer.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert san.value.get_values_for_type(x509.UniformResourceIdentifier) == [INJECTOR]
        assert tuple(san.value.get_values_for_type(x509.DNSName)) == dns
        assert san.critical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("serving_grants: [{service_account: injector, dns: [a.b]}]", "namespace/name"),
        ('serving_grants: [{service_account: a/b, dns: ["*.b"]}]', "without wildcards"),
        ("serving_grants: [{service_account: a/b, dns: []}]", "1 to 16 names"),
        ("serving_grants: [{service_account: a/b, dns: [x, x]}]", "each once"),
        (
            "serving_grants: [{service_account: a/b, dns: [x]}, {service_account: a/b, dns: [y]}]",
            "stands there twice",
        ),
        ("cluster: {kubernetes: false}", "token.issuer and token.jwks_file must be given"),
        (
            "token: {issuer: x, jwks_file: y}\ncluster: {kubernetes: false, token_review: true}",
            "need cluster.kubernetes",
        ),
    ],
)
def test_configuration_that_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "ca.yaml"
    base = "state_dir: state\n" + ("" if "cluster:" in text else "cluster: {kubernetes: true}\n")
    file.write_text(base + text + "\n")
    with pytest.raises((SettingsError, ConfigError), match=words):
        configuration.load(file, {})


def test_check_says_what_would_happen(kube: FakeKube, tmp_path: Path) -> None:
    config = load(kube, tmp_path)
    lines, good = check.describe(config)
    text = "\n".join(lines)
    assert good, text
    assert "Kubernetes 1.20 at 127.0.0.1" in text
    assert "will be made in Secret istio-system/gatehouse-ca" in text
    assert kube.all("Secret") == []
    with cluster_ca(kube, tmp_path, start=False):
        pass
    lines, good = check.describe(config)
    assert good
    assert "1 root(s)" in "\n".join(lines)
    kube.remove("Secret", "gatehouse-ca", NAMESPACE)
    lines, good = check.describe(config)
    assert not good
    assert "keystore_root_lost" in "\n".join(lines)
    kube.documents["/.well-known/openid-configuration"] = {}
    assert "no issuer in the answer" in "\n".join(check.describe(config)[0])
    kube.stop()
    lines, good = check.describe(config)
    assert not good
    assert "cluster         PROBLEM" in "\n".join(lines)


def test_start_without_an_api_server_says_so(kube: FakeKube, tmp_path: Path) -> None:
    config = load(kube, tmp_path)
    kube.stop()
    with pytest.raises(KubeError, match="no answer from the API server"):
        Runtime(config)
