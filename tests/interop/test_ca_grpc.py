"""The CSR API over real TLS and real sockets, with gRPC's own client: the rows of f.2 and f.3 at the wire."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.protobuf import struct_pb2

from ca.authn import PUBLIC_TEXT
from ca.grpc_server import METHOD
from examples.demo.forge import insider, outsider
from examples.demo.svid import Identity
from examples.demo.tls import client_context
from mesh._proto import istio_ca_pb2
from mesh.x509 import pem
from mesh.x509.certs import spki_der
from mesh.x509.verify import verify_svid
from tests.fakes import ca_tokens
from tests.fakes.ca_factory import key_pem, new_key
from tests.fakes.ca_running import Client, RunningCa, audit_lines, bearer, make_csr, running_ca

S = grpc.StatusCode


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCa]:
    with running_ca(tmp_path_factory.mktemp("ca"), limits__caller_burst=10_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(ca: RunningCa) -> Client:
    return ca.client()


def metadata_struct(**values: Any) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct


# --- issuing ------------------------------------------------------------------------------------------


def test_f06_chain_order_and_contents(ca: RunningCa, client: Client) -> None:
    """b.1: leaf, intermediates, and the whole root bundle as the last element; it verifies."""
    key = new_key()
    with audit_lines() as lines:
        answer = client.create([ca.token()], make_csr(key))
    assert answer.ok
    assert [text.count("BEGIN CERTIFICATE") for text in answer.chain] == [1, 1, 1]
    chain = pem.decode_certificates("".join(answer.chain[:-1]))
    roots = pem.decode_certificates(answer.chain[-1])
    assert answer.chain[-1].encode() == ca.roots
    verified = verify_svid(chain, roots, dt.datetime.now(dt.UTC), trust_domain=ca.runtime.config.trust_domain)
    assert str(verified.spiffe_id) == "spiffe://cluster.local/ns/demo/sa/web"
    assert answer.leaf.public_key() == key.public_key()
    (line,) = lines
    assert line["decision"] == "issued"
    assert line["serial"] == verified.serial
    assert line["pod_uid"] == ca_tokens.POD_UID
    assert (str(line["key_kind"]), line["key_reused"], line["method"]) == ("P-256", False, "token")
    assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_server_time_in_every_answer(ca: RunningCa, client: Client) -> None:
    for headers in ([ca.token()], []):
        trailers = client.create(headers, ca.csr()).trailers
        at = int(trailers["gatehouse-server-time-ms"]) / 1000
        assert abs(at - dt.datetime.now(dt.UTC).timestamp()) < 30


def test_f18_validity_zero_is_the_default_and_a_wish_is_granted(ca: RunningCa, client: Client) -> None:
    for asked, hours in ((0, 24), (7200, 2)):
        leaf = client.create([ca.token()], ca.csr(), validity_duration=asked).leaf
        lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        assert lifetime == dt.timedelta(hours=hours, minutes=2)


def test_f14_reused_key_is_counted(ca: RunningCa, client: Client) -> None:
    csr = ca.csr()
    counter = ca.runtime.metrics.key_reuse
    before = counter._value.get()
    with audit_lines() as lines:
        assert client.create([ca.token()], csr).ok
        assert client.create([ca.token()], csr).ok
    assert [line["key_reused"] for line in lines] == [False, True]
    assert counter._value.get() == before + 1


# --- refusals -----------------------------------------------------------------------------------------

NOW = dt.datetime.now(dt.UTC)
HOUR = 3600
ALL_OPAQUE = [
    ("F-40 no token", [], "authn_no_credential"),
    ("F-40 Basic", [("authorization", "Basic dTpw")], "authn_header_scheme"),
    ("F-40 two headers", [bearer("a"), bearer("b")], "authn_header_repeated"),
    ("F-40 empty Bearer", [("authorization", "Bearer ")], "authn_token_empty"),
    ("F-41 expired", [bearer(ca_tokens.token(NOW, iat=1, nbf=1, exp=2))], "authn_token_expired"),
    ("F-42 audience", [bearer(ca_tokens.token(NOW, aud=["kubernetes"]))], "authn_token_audience"),
    ("F-44 legacy", [bearer(ca_tokens.token(NOW, **{"kubernetes.io": None}))], "authn_token_not_pod_bound"),
    ("F-48 user", [bearer(ca_tokens.token(NOW, sub="alice"))], "authn_token_subject"),
    (
        "F-49 three parts",
        [bearer(ca_tokens.token(NOW, sub="system:serviceaccount:x"))],
        "authn_token_subject",
    ),
    ("F-49 slash", [bearer(ca_tokens.token(NOW, namespace="a/b"))], "authn_token_subject"),
    (
        "F-50 alg none",
        [bearer(f"{ca_tokens.segment({'alg': 'none', 'kid': 'k1'})}.e30.")],
        "authn_token_unknown_key",
    ),
    ("F-50 jku", [bearer(ca_tokens.sign(ca_tokens.claims(NOW), jku="https://x"))], "authn_token_header"),
    ("F-51 issuer", [bearer(ca_tokens.token(NOW, iss=ca_tokens.ISSUER + "/"))], "authn_token_issuer"),
    (
        "F-56 XFCC",
        [("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/a/sa/b")],
        "authn_no_credential",
    ),
]


@pytest.mark.parametrize(("headers", "code"), [pytest.param(h, c, id=i) for i, h, c in ALL_OPAQUE])
def test_unauthenticated_tells_nothing(
    ca: RunningCa, client: Client, headers: list[tuple[str, str]], code: str
) -> None:
    """F-40: the same text for all; the audit trail knows the reason."""
    with audit_lines() as lines:
        answer = client.create(headers, ca.csr())
    assert (answer.code, answer.text, answer.reason) == (S.UNAUTHENTICATED, PUBLIC_TEXT, "")
    assert set(answer.trailers) == {"gatehouse-server-time-ms"}
    assert [str(line["code"]) for line in lines] == [code]


@pytest.mark.parametrize("clusters", [["other"], ["Kubernetes", "Kubernetes"], [""]], ids=str)
def test_f27_clusterid(ca: RunningCa, client: Client, clusters: list[str]) -> None:
    with audit_lines() as lines:
        answer = client.create([ca.token(), *(("clusterid", c) for c in clusters)], ca.csr())
    assert (answer.code, answer.text) == (S.UNAUTHENTICATED, PUBLIC_TEXT)
    assert [str(line["code"]) for line in lines] == ["authn_cluster"]


def test_f27_known_cluster(ca: RunningCa, client: Client) -> None:
    assert client.create([ca.token(), ("clusterid", "Kubernetes")], ca.csr()).ok


OWN_ID = "spiffe://cluster.local/ns/demo/sa/web"
OTHER_ID = "spiffe://cluster.local/ns/prod/sa/admin"
AN_HOUR = dt.timedelta(hours=1)
INVALID = [
    ("F-02 another identity", {"csr": make_csr(new_key(), OTHER_ID)}, "spoof_attempt", "another identity"),
    ("F-03 two URIs", {"csr": make_csr(new_key(), OTHER_ID, OTHER_ID)}, "spoof_attempt", "another identity"),
    ("F-08 16 KiB CSR", {"csr": "a" * 20_000}, "csr_too_large", "20000 bytes"),
    ("F-09 empty CSR", {"csr": ""}, "csr_empty", "CSR is empty"),
    ("F-09 no PEM", {"csr": "x"}, "csr_framing", "must start with"),
    ("F-19 negative", {"validity_duration": -1}, "ttl_negative", "negative"),
    ("F-19 INT64_MIN", {"validity_duration": -(2**63)}, "ttl_negative", "negative"),
    ("F-19 INT64_MAX", {"validity_duration": 2**63 - 1}, "ttl_too_long", "over the maximum"),
    ("F-20 over the maximum", {"validity_duration": 49 * HOUR}, "ttl_too_long", "over the maximum"),
    ("F-21 one second", {"validity_duration": 1}, "ttl_too_short", "under the minimum"),
    (
        "F-26 number",
        {"metadata": metadata_struct(ImpersonatedIdentity=5)},
        "impersonation_invalid",
        "must be text",
    ),
    (
        "F-26 list",
        {"metadata": metadata_struct(ImpersonatedIdentity=["a"])},
        "impersonation_invalid",
        "must be text",
    ),
    (
        "F-26 null",
        {"metadata": metadata_struct(ImpersonatedIdentity=None)},
        "impersonation_invalid",
        "must be text",
    ),
    (
        "F-26 true",
        {"metadata": metadata_struct(ImpersonatedIdentity=True)},
        "impersonation_invalid",
        "must be text",
    ),
    (
        "F-26 object",
        {"metadata": metadata_struct(ImpersonatedIdentity={"a": 1})},
        "impersonation_invalid",
        "must be",
    ),
    (
        "F-25 no ID",
        {"metadata": metadata_struct(ImpersonatedIdentity="admin")},
        "impersonation_invalid",
        "start with",
    ),
    ("other signer", {"metadata": metadata_struct(CertSigner="x")}, "request_metadata", "CertSigner"),
]


@pytest.mark.parametrize(("fields", "code", "text"), [pytest.param(f, c, t, id=i) for i, f, c, t in INVALID])
def test_invalid_requests(
    ca: RunningCa, client: Client, fields: dict[str, Any], code: str, text: str
) -> None:
    with audit_lines() as lines:
        answer = client.create([ca.token()], **({"csr": ca.csr()} | fields))
    assert (answer.code, answer.reason) == (S.INVALID_ARGUMENT, code)
    assert text in answer.text
    (line,) = lines
    assert str(line["code"]) == code
    assert line["hostile"] is (code == "spoof_attempt")
    assert line["identity"] == "spiffe://cluster.local/ns/demo/sa/web"


def test_f23_impersonation_is_denied_to_everybody(ca: RunningCa, client: Client) -> None:
    with audit_lines() as lines:
        answer = client.create(
            [ca.token()], ca.csr(), metadata=metadata_struct(ImpersonatedIdentity=OTHER_ID)
        )
    assert (answer.code, answer.reason) == (S.PERMISSION_DENIED, "impersonation_denied")
    assert "send the workload's own token" in answer.text
    assert lines[0]["hostile"] is True
    assert OTHER_ID in lines[0]["detail"]


def test_f26_empty_impersonation_is_none(ca: RunningCa, client: Client) -> None:
    metadata = metadata_struct(ImpersonatedIdentity="", WorkloadName="web", ClusterID="x")
    assert client.create([ca.token()], ca.csr(), metadata=metadata).ok


def test_f15_key_of_another_identity(ca: RunningCa, client: Client) -> None:
    csr = ca.csr()
    assert client.create([ca.token()], csr).ok
    with audit_lines() as lines:
        answer = client.create([ca.token(name="thief", uid="u2")], csr)
    assert (answer.code, answer.reason) == (S.PERMISSION_DENIED, "key_of_other_identity")
    assert lines[0]["hostile"] is True
    assert "/sa/web" not in answer.text, "whose key it is, is nobody's business"


def test_f08_transport_caps(ca: RunningCa, client: Client) -> None:
    assert client.create([ca.token()], "a" * (4 << 20)).code is S.RESOURCE_EXHAUSTED
    assert client.create([bearer("a" * 100_000)], ca.csr()).code is S.RESOURCE_EXHAUSTED  # F-52
    huge = metadata_struct(**{f"k{n}": "v" * 1000 for n in range(1000)})
    assert client.create([ca.token()], ca.csr(), metadata=huge).code is S.RESOURCE_EXHAUSTED
    many = client.create([ca.token()], ca.csr(), metadata=metadata_struct(**{f"k{n}": 1 for n in range(33)}))
    assert (many.code, many.reason) == (S.INVALID_ARGUMENT, "request_metadata")
    assert client.create([ca.token()], ca.csr()).ok, "and the connection lives on"


def nested(levels: int) -> bytes:
    """A request whose metadata is nested so deeply; written by hand, the library refuses to."""
    value = b""
    for _ in range(levels):
        field = b"\x0a\x01k" + b"\x12" + _varint(len(value)) + value
        struct = b"\x0a" + _varint(len(field)) + field
        value = b"\x2a" + _varint(len(struct)) + struct
    field = b"\x0a\x01k\x12" + _varint(len(value)) + value
    struct = b"\x0a" + _varint(len(field)) + field
    return b"\x22" + _varint(len(struct)) + struct


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(nested(1000), id="F-08 deep nesting"),
        pytest.param(b"\xff" * 20, id="no protobuf"),
        pytest.param(b"\x0a\x02\xff\xfe", id="CSR is not UTF-8"),
    ],
)
def test_messages_that_cannot_be_read(ca: RunningCa, client: Client, message: bytes) -> None:
    answer = client.raw(METHOD, message, [ca.token()])
    assert (answer.code, answer.reason) == (S.INVALID_ARGUMENT, "request_malformed")


def test_empty_message_is_an_empty_csr(ca: RunningCa, client: Client) -> None:
    assert client.raw(METHOD, b"", [ca.token()]).reason == "csr_empty"


def test_other_methods_do_not_exist(client: Client) -> None:
    assert client.raw("/istio.v1.auth.IstioCAService/HandleCSR", b"", []).code is S.UNIMPLEMENTED


def test_call_without_a_message(ca: RunningCa, client: Client) -> None:
    call = client.channel.stream_unary(METHOD)
    with pytest.raises(grpc.RpcError) as error:
        call(iter(()), metadata=[ca.token()], timeout=10)
    assert error.value.code() is S.INVALID_ARGUMENT  # type: ignore[attr-defined] # gRPC's errors are calls


# --- client certificates --------------------------------------------------------------------------------


def issued_credentials(ca: RunningCa, client: Client, **changes: Any) -> dict[str, bytes]:
    key = new_key()
    answer = client.create([ca.token(**changes)], make_csr(key))
    return {"key": key_pem(key).encode(), "chain": "".join(answer.chain[:-1]).encode()}


def test_renewal_with_the_current_svid(ca: RunningCa, client: Client) -> None:
    mutual = ca.client(**issued_credentials(ca, client))
    with audit_lines() as lines:
        answer = mutual.create([], ca.csr())
    assert answer.ok
    assert lines[0]["method"] == "certificate"


def test_f55_certificate_and_token_must_agree(ca: RunningCa, client: Client) -> None:
    mutual = ca.client(**issued_credentials(ca, client))
    with audit_lines() as lines:
        assert mutual.create([ca.token()], ca.csr()).ok
        mismatch = mutual.create([ca.token(name="other", uid="u3")], ca.csr())
        bad_token = mutual.create([bearer("x")], ca.csr())
    assert lines[0]["method"] == "token+certificate"
    for answer in (mismatch, bad_token):
        assert (answer.code, answer.text) == (S.UNAUTHENTICATED, PUBLIC_TEXT)
    assert [str(line["code"]) for line in lines[1:]] == ["authn_mismatch", "authn_token_malformed"]
    assert lines[1]["hostile"] is True


def forged(ca: RunningCa, spiffe_id: str = OWN_ID, **dates: dt.timedelta) -> Identity:
    """Signed with the authority's own key: nothing but the name or the dates can be wrong."""
    return insider(ca.runtime.config.state_dir).issue(spiffe_id, **dates)


def greeted(ca: RunningCa, identity: Identity | None) -> bool:
    """The handshake was good: the server sends its first HTTP/2 frame. Else it hangs up, with no alert."""
    context = client_context(identity, version=ssl.TLSVersion.TLSv1_3, roots_pem=ca.roots, alpn=("h2",))
    with (
        socket.create_connection(("127.0.0.1", ca.runtime.grpc.mtls_port), timeout=20) as plain,
        context.wrap_socket(plain) as tls,
    ):
        return tls.recv(100) != b""


STRANGERS: dict[str, Callable[[RunningCa], Identity | None]] = {
    "none": lambda _: None,
    "other CA": lambda _: outsider().issue(OWN_ID),
    "expired": lambda ca: forged(ca, start=-2 * AN_HOUR, end=-AN_HOUR),
    "early": lambda ca: forged(ca, start=AN_HOUR, end=2 * AN_HOUR),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_f54_handshake_refuses_other_certificates(ca: RunningCa, kind: str) -> None:
    """No bytes of ours are reached. Each differs in one thing from the one that is let in."""
    assert greeted(ca, forged(ca))
    assert not greeted(ca, STRANGERS[kind](ca))


def test_f54_another_trust_domain_under_our_root(ca: RunningCa) -> None:
    """The handshake is good, since the root is; the name is not. Its own name is let in."""
    good = forged(ca)
    assert ca.client(key=good.key_pem, chain=good.chain_pem).create([], ca.csr()).ok
    evil = forged(ca, OWN_ID.replace("cluster.local", "cluster.local.evil"))
    with audit_lines() as lines:
        answer = ca.client(key=evil.key_pem, chain=evil.chain_pem).create([], ca.csr())
    assert (answer.code, answer.text, answer.reason) == (S.UNAUTHENTICATED, PUBLIC_TEXT, "")
    assert [str(line["code"]) for line in lines] == ["authn_certificate_domain"]


# --- load -----------------------------------------------------------------------------------------------


def test_f28_one_greedy_pod_leaves_others_alone(tmp_path: Path) -> None:
    with running_ca(tmp_path, limits__caller_in_flight=2) as ca:
        greedy, polite = [ca.client() for _ in range(4)], ca.client()
        token, csr = ca.token(uid="greedy"), ca.csr()
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            flood = [pool.submit(greedy[n % 4].create, [token], csr, timeout=120) for n in range(1000)]
            answers = [polite.create([ca.token(name=f"w{n}", uid=f"p{n}")], ca.csr()) for n in range(20)]
            found = [future.result() for future in flood]
        assert all(answer.ok for answer in answers)
        refused = [answer for answer in found if not answer.ok]
        assert len(refused) > 900, "burst is 20, and 2 a second"
        assert {answer.code for answer in refused} == {S.RESOURCE_EXHAUSTED}
        assert {answer.reason for answer in refused} <= {"limit_caller_rate", "limit_caller_in_flight"}
        hint = refused[0]
        assert 0.05 <= hint.retry_seconds <= 30
        assert int(hint.trailers["grpc-retry-pushback-ms"]) == int(hint.retry_seconds * 1000)
        assert ca.runtime.limiter.in_flight == 0


def test_f29_silent_streams_hold_no_thread(tmp_path: Path) -> None:
    """Streams that are opened and never send: without a credential they end at once, with one in time."""
    with running_ca(
        tmp_path, limits__threads=4, limits__receive_wait="500ms", limits__caller_in_flight=2
    ) as ca:
        silent, release = ca.client(), threading.Event()

        def never() -> Iterator[bytes]:
            release.wait(90)
            yield from ()

        calls = [silent.channel.stream_unary(METHOD).future(never(), timeout=90) for _ in range(20)]
        calls += [
            silent.channel.stream_unary(METHOD).future(never(), metadata=[ca.token(uid="slow")], timeout=90)
            for _ in range(20)
        ]
        try:
            answers = [ca.client().create([ca.token(uid=f"p{n}")], ca.csr(), timeout=30) for n in range(5)]
            assert all(answer.ok for answer in answers)
            codes = [call.code() for call in calls]
        finally:
            release.set()
        assert codes[:20] == [S.UNAUTHENTICATED] * 20
        assert set(codes[20:]) <= {S.CANCELLED, S.UNAVAILABLE, S.RESOURCE_EXHAUSTED}


def test_g03_restart_in_the_middle(tmp_path: Path) -> None:
    """A request that was cut off is simply sent again, with the same key, to the restarted authority."""
    key = new_key()
    with running_ca(tmp_path, drain="30s") as first:
        before = first.client().create([first.token()], make_csr(key))
        roots = first.roots
        held, entered = threading.Event(), threading.Event()
        inner = first.runtime.service._authority

        def slow() -> Any:
            entered.set()
            held.wait(60)
            return inner()

        first.runtime.service._authority = slow
        client = first.client()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pending = pool.submit(client.create, [first.token()], make_csr(key), timeout=60)
            assert entered.wait(60)
            first.runtime.drain()
            late = first.client().create([first.token()], first.csr(), timeout=2)
            assert late.code in {S.UNAVAILABLE, S.CANCELLED, S.DEADLINE_EXCEEDED}, "no new work"
            held.set()
            assert pending.result().ok, "what was in flight ends well"
    with running_ca(tmp_path) as second:
        assert second.roots == roots
        after = second.client().create([second.token()], make_csr(key))
    assert after.ok
    assert before.leaf.public_key() == after.leaf.public_key()
    assert before.leaf.serial_number != after.leaf.serial_number


def test_serving_certificate_is_swapped_without_a_restart(ca: RunningCa) -> None:
    assert ca.client().create([ca.token()], ca.csr()).ok
    held = ca.runtime.serving.current
    issuer = dataclasses.replace(ca.runtime.authority().issuer)  # another issuer, as after its renewal
    assert ca.runtime.serving.renew(issuer, ca.runtime.clock.now()) is True
    assert ca.client().create([ca.token()], ca.csr()).ok
    # The upkeep may have renewed it once more meanwhile, for the issuer that is really there.
    served = x509.load_pem_x509_certificate(
        ssl.get_server_certificate(("127.0.0.1", ca.runtime.grpc.port)).encode()
    )
    assert spki_der(served.public_key()) != held.spki


def test_unknown_fields_are_ignored(ca: RunningCa, client: Client) -> None:
    request = istio_ca_pb2.IstioCertificateRequest(csr=ca.csr()).SerializeToString() + b"\x12\x01x"
    assert client.raw(METHOD, request, [ca.token()]).code is S.OK
