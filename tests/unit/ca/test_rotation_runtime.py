"""Two whole authorities on one API server: certificates are issued through all phases of a rotation."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from mesh.ca_status import CaStatus, Phase, decode
from mesh.kube.api import PatchType
from mesh.x509 import pem
from mesh.x509.verify import verify_svid
from tests.fakes.ca_cluster import NAMESPACE, RunningClusterCa, cluster_ca, pod, prepare, until
from tests.fakes.ca_factory import TRUST_DOMAIN, make_hierarchy
from tests.fakes.ca_running import Answer, Client
from tests.fakes.kube_api import FakeKube

ASK = "gatehouse.dev/ca-request"


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with FakeKube() as server:
        prepare(server)
        server.add(pod())
        yield server


@contextlib.contextmanager
def _two(kube: FakeKube, directory: Path, **settings: object) -> Iterator[list[RunningClusterCa]]:
    with contextlib.ExitStack() as stack:
        found = []
        for name in ("ca-0", "ca-1"):
            (directory / name).mkdir()
            options = {"cluster__replica": name, "rotation__hold": "1s", **settings}
            found.append(stack.enter_context(cluster_ca(kube, directory / name, **options)))
        for ca in found:
            until(ca.runtime.health.ready, "asked")
            until(lambda ca=ca: ca.runtime.health.ready().ok, "ready")  # type: ignore[misc]  # bound now
        until(lambda: _status(kube), "a leader that says so")
        yield found


def _status(kube: FakeKube) -> CaStatus | None:
    found = kube.find("ConfigMap", "gatehouse-ca", NAMESPACE) or {}
    text = (found.get("data") or {}).get("status.json")
    return decode(text) if text else None


def _ask(kube: FakeKube, step: str, **others: str) -> None:
    """As `meshctl` does it, and until it is answered."""
    api = kube.api()
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/gatehouse-ca"
    name = f"{step}-{len(kube.requests)}"
    annotations = {ASK: step, f"{ASK}-id": name, **{f"{ASK}-{key}": text for key, text in others.items()}}
    api.patch(path, {"metadata": {"annotations": annotations}}, PatchType.MERGE)

    def answered() -> bool:
        status = _status(kube)
        return status is not None and status.answer is not None and status.answer.id == name

    until(answered, f"answer to {step}")
    status = _status(kube)
    assert status is not None
    assert status.answer is not None
    assert status.answer.done, status.answer


def _issue(ca: RunningClusterCa, roots: bytes) -> Answer:
    """A certificate by a connection that trusts these roots and no others."""
    client = Client(ca.runtime.grpc.port, roots)
    try:
        answer = client.create([ca.token()], ca.csr())
    finally:
        client.close()
    assert answer.code is grpc.StatusCode.OK, answer.text
    return answer


def _ders(answer: Answer) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Chain and roots."""
    chain = tuple(der for text in answer.chain[:-1] for der in pem.decode_certificates(text))
    return chain, pem.decode_certificates(answer.chain[-1])


def _published(kube: FakeKube) -> tuple[bytes, ...]:
    found = kube.find("ConfigMap", "istio-ca-root-cert", "demo") or {}
    return pem.decode_certificates(found["data"]["root-cert.pem"]) if found else ()


def _bundle(ca: RunningClusterCa) -> tuple[int, int]:
    """Keys and sequence of /bundle."""
    document = ca.runtime.bundle.document
    assert document is not None
    found = json.loads(document.body)
    return len(found["keys"]), found["spiffe_sequence"]


def _caught_up(cas: list[RunningClusterCa], generation: int, epoch: int) -> None:
    for ca in cas:
        until(
            lambda ca=ca: (  # type: ignore[misc]  # bound now
                (lambda i: (i.generation, i.epoch))(ca.runtime.serving.current.issuer) == (generation, epoch)
            ),
            f"generation {generation} of {ca.runtime.cluster.name}",  # type: ignore[union-attr]  # on a cluster
        )


def test_all_phases_with_two_replicas(kube: FakeKube, tmp_path: Path) -> None:
    with _two(kube, tmp_path) as cas:
        former = cas[0].roots
        (former_der,) = pem.decode_certificates(former.decode())
        held = _ders(_issue(cas[0], former))[0]
        sequence = _bundle(cas[0])[1]

        _ask(kube, "prepare")
        _caught_up(cas, 2, 1)
        for ca in cas:
            chain, roots = _ders(_issue(ca, former))
            assert (len(chain), roots[0], len(roots)) == (2, former_der, 2)
            until(lambda ca=ca: _bundle(ca)[0] == 2, "/bundle")  # type: ignore[misc]  # bound now
            assert _bundle(ca)[1] > sequence
        until(lambda: len(_published(kube)) == 2, "published")
        told = _published(kube)
        (next_der,) = set(told) - {former_der}
        after = pem.encode_certificate(next_der).encode()

        until(lambda: (s := _status(kube)) is not None and s.phase is Phase.ACTIVE, "active by itself")
        _caught_up(cas, 2, 2)
        for ca in cas:
            # The serving certificate is of the next root; its chain leads to the former one as well.
            for trusted in (former, after, former + after):
                chain, roots = _ders(_issue(ca, trusted))
                assert (len(chain), set(roots)) == (3, {former_der, next_der})
            now = ca.runtime.clock.now()
            for trust in ((former_der,), (next_der,), roots):
                assert verify_svid(chain, trust, now, trust_domain=TRUST_DOMAIN)
            assert verify_svid(held, roots, now, trust_domain=TRUST_DOMAIN)
        assert _published(kube) == told, "another signs, and not a byte is another"

        _ask(kube, "taint", within="60")
        assert (_status(kube) or cas).phase is Phase.TAINTED  # type: ignore[union-attr]  # it is there
        _ask(kube, "retire", force="true")
        _caught_up(cas, 3, 2)
        for ca in cas:
            chain, roots = _ders(_issue(ca, after))
            assert (len(chain), roots) == (2, (next_der,))
            until(lambda ca=ca: _bundle(ca)[0] == 1, "/bundle")  # type: ignore[misc]  # bound now
        until(lambda: _published(kube) == (next_der,), "published")

        status = _status(kube)
        assert status is not None
        assert (status.phase, status.generation, status.epoch) == (Phase.STABLE, 3, 2)
        for ca in cas:
            page = _metrics(ca)
            assert 'gatehouse_ca_rotation_phase{phase="stable"} 1.0' in page
            assert "gatehouse_ca_bundle_generation 3.0" in page
            assert "gatehouse_ca_issuer_epoch 2.0" in page
        steps = [
            f'gatehouse_ca_rotation_steps_total{{result="done",step="{s}"}} 1.0'
            for s in ("activate", "taint")
        ]
        pages = "".join(map(_metrics, cas))
        assert [pages.count(line) for line in steps] == [1, 1], "the leader counts, nobody else"
        for ca in cas:
            assert "ok rotation\n" in ca.runtime.health.ready().text()


def _metrics(ca: RunningClusterCa) -> str:
    plain = ca.runtime.plain
    assert plain is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{plain.port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def test_abort_and_nothing_by_itself(kube: FakeKube, tmp_path: Path) -> None:
    with _two(kube, tmp_path, rotation__automatic="false") as cas:
        _ask(kube, "prepare")
        _caught_up(cas, 2, 1)
        _ask(kube, "abort")
        _caught_up(cas, 3, 1)
        for ca in cas:
            chain, roots = _ders(_issue(ca, ca.roots))
            assert (len(chain), pem.encode_certificates(roots).encode()) == (2, ca.roots)


def test_root_expiry_is_of_the_root_that_signs(kube: FakeKube, tmp_path: Path) -> None:
    with _two(kube, tmp_path) as cas:
        _ask(kube, "prepare")
        _caught_up(cas, 2, 1)
        runtime = cas[0].runtime
        runtime.refresh_gauges()
        end = x509.load_der_x509_certificate(runtime.keystore.roots[0]).not_valid_after_utc.timestamp()
        assert runtime.registry.get_sample_value("gatehouse_ca_root_cert_expiry_timestamp_seconds") == end


def test_a_plugged_in_ca_says_how_things_stand(kube: FakeKube, tmp_path: Path) -> None:
    plugged = tmp_path / "cacerts"
    make_hierarchy(now=dt.datetime.now(dt.UTC)).write_cacerts(plugged)
    with _two(kube, tmp_path, ca_dir=str(plugged)) as cas:
        status: Any = _status(kube)
        assert (status.phase, status.generation, len(status.roots)) == (Phase.PLUGGED, 0, 1)
        assert 'gatehouse_ca_rotation_phase{phase="plugged"} 1.0' in _metrics(cas[0])
        assert kube.all("Secret") == []
