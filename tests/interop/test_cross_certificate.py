"""The chain of the phase active, as others see it: openssl, Python's ssl, a real Envoy with both validators.

A peer may trust the former root alone (it has missed everything), the next one alone, or both.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ca.core.hierarchy import Parent, make_cross
from mesh.envoy.resources import Resource
from mesh.envoy.secrets import bundles_secret, roots_secret, svid_secret
from mesh.x509 import pem
from tests.fakes.ca_factory import TRUST_DOMAIN, Leaf, make_hierarchy
from tests.fakes.envoy_process import EnvoyProcess
from tests.fakes.envoy_static import as_data, decode

TYPE = "type.googleapis.com/"
TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
ECHO = TYPE + "envoy.extensions.filters.network.echo.v3.Echo"
TRUSTED = ("former", "next", "both")
VALIDATORS = ("roots", "spiffe")


class Pki:
    """A rotation in the phase active, now."""

    def __init__(self) -> None:
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        day = dt.timedelta(days=1)
        self.former = make_hierarchy(now=now - 300 * day, root_lifetime=330 * day, issuing_lifetime=329 * day)
        self.next = make_hierarchy(now=now)
        self.foreign = make_hierarchy(now=now)
        parent = Parent(x509.load_der_x509_certificate(self.former.root_der), self.former.root_key)
        self.cross = make_cross(x509.load_der_x509_certificate(self.next.root_der), parent, now)
        self.leaf = self._leaf(now)
        self.chain = (*self.leaf.chain, self.cross)
        self.bundles = {
            "former": self.former.roots,
            "next": self.next.roots,
            "both": (*self.next.roots, *self.former.roots),
        }

    def _leaf(self, now: dt.datetime) -> Leaf:
        minute = dt.timedelta(minutes=1)
        return self.next.leaf(not_before=now - minute, not_after=now + 60 * minute)


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest.fixture
def files(pki: Pki, tmp_path: Path) -> Path:
    texts = {
        "leaf.pem": pki.chain[:1],
        "untrusted.pem": pki.chain[1:],
        "no-cross.pem": pki.chain[1:-1],
        "chain.pem": pki.chain,
        **{f"{name}.pem": roots for name, roots in pki.bundles.items()},
    }
    for name, ders in texts.items():
        (tmp_path / name).write_text(pem.encode_certificates(ders))
    (tmp_path / "key.pem").write_text(pki.leaf.key_pem)
    return tmp_path


def verify(files: Path, trusted: str, untrusted: str, *more: str) -> tuple[int, str]:
    assert shutil.which("openssl"), "install openssl"
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(files / f"{trusted}.pem"), *more]
    command += ["-untrusted", str(files / f"{untrusted}.pem"), str(files / "leaf.pem")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.openssl
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
@pytest.mark.parametrize("trusted", TRUSTED)
def test_openssl_accepts_the_chain(files: Path, trusted: str, purpose: str) -> None:
    status, out = verify(files, trusted, "untrusted", "-purpose", purpose)
    assert (status, "leaf.pem: OK" in out) == (0, True), out


@pytest.mark.openssl
def test_openssl_needs_it_where_only_the_former_root_is_trusted(files: Path) -> None:
    status, out = verify(files, "former", "no-cross")
    assert status != 0
    assert "unable to get" in out


@pytest.mark.openssl
@pytest.mark.parametrize(("trusted", "good"), [("former", False), ("next", True), ("both", True)])
def test_openssl_after_its_end(pki: Pki, files: Path, trusted: str, good: bool) -> None:
    end = x509.load_der_x509_certificate(pki.cross).not_valid_after_utc
    at = end + dt.timedelta(days=1)
    minute = dt.timedelta(minutes=1)
    leaf = pki.next.leaf(not_before=at - minute, not_after=at + minute)
    (files / "leaf.pem").write_text(pem.encode_certificate(leaf.der))
    status, out = verify(files, trusted, "untrusted", "-attime", str(int(at.timestamp())))
    assert (status == 0) is good, out


# --- a real Envoy ------------------------------------------------------------------------------------


def _bundle(pki: Pki, trusted: str, validator: str) -> Resource:
    name = f"{validator}-{trusted}"
    roots = pki.bundles[trusted]
    return roots_secret(name, roots) if validator == "roots" else bundles_secret(name, {TRUST_DOMAIN: roots})


def _listener(name: str) -> dict[str, Any]:
    tls = {
        "@type": TLS,
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{"name": "default"}],
            "validation_context_sds_secret_config": {"name": name},
        },
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "filters": [{"name": "echo", "typed_config": {"@type": ECHO}}],
                "transport_socket": {"name": "tls", "typed_config": tls},
            }
        ],
    }


@dataclass(frozen=True)
class Proxy:
    envoy: EnvoyProcess
    ports: dict[str, int]


@pytest.fixture(scope="module")
def proxy(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A listener for each kind of peer; each presents the chain with the cross certificate."""
    kinds = list(itertools.product(TRUSTED, VALIDATORS))
    secrets = [svid_secret("default", pki.chain, pki.leaf.key_pkcs8)]
    secrets += [_bundle(pki, trusted, validator) for trusted, validator in kinds]
    bootstrap = {
        "node": {"id": "cross", "cluster": "cross"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [_listener(f"{validator}-{trusted}") for trusted, validator in kinds],
            "secrets": [as_data(decode(secret)) for secret in secrets],
        },
    }
    with EnvoyProcess(bootstrap, tmp_path_factory.mktemp("envoy")) as envoy:
        found = json.loads(envoy.get("/listeners?format=json")[1])["listener_statuses"]
        ports = {i["name"]: i["local_address"]["socket_address"]["port_value"] for i in found}
        yield Proxy(envoy, ports)


def _says(port: int, certificate: Path, key: Path, roots: Path) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(roots)
    context.load_cert_chain(certificate, key)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw, context.wrap_socket(raw) as tls:
        tls.sendall(b"hello")
        return tls.recv(5)


@pytest.mark.envoy
@pytest.mark.xdist_group("cross")
@pytest.mark.parametrize("validator", VALIDATORS)
@pytest.mark.parametrize("trusted", TRUSTED)
def test_envoy_accepts_the_chain_and_so_does_its_client(
    proxy: Proxy, files: Path, trusted: str, validator: str
) -> None:
    """Both sides present the chain; the client trusts the same roots as the proxy."""
    port = proxy.ports[f"{validator}-{trusted}"]
    assert _says(port, files / "chain.pem", files / "key.pem", files / f"{trusted}.pem") == b"hello"


@pytest.mark.envoy
@pytest.mark.xdist_group("cross")
@pytest.mark.parametrize("validator", VALIDATORS)
def test_envoy_with_the_former_root_alone_needs_it(
    proxy: Proxy, files: Path, pki: Pki, validator: str
) -> None:
    (files / "short.pem").write_text(pem.encode_certificates(pki.leaf.chain))
    failed = _refusals(proxy.envoy)
    with contextlib.suppress(OSError):  # an alert, or the end of the connection: which depends on the moment
        port = proxy.ports[f"{validator}-former"]
        assert _says(port, files / "short.pem", files / "key.pem", files / "next.pem") == b""
    assert _refusals(proxy.envoy) == failed + 1


def _refusals(envoy: EnvoyProcess) -> int:
    return sum(envoy.stats("ssl.fail_verify_error").values())
