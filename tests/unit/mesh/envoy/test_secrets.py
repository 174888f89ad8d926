"""SDS secrets."""

from __future__ import annotations

import ssl

import pytest
from envoy.extensions.transport_sockets.tls.v3 import tls_spiffe_validator_config_pb2

from mesh.envoy import messages as m
from mesh.envoy.resources import SECRET
from mesh.envoy.secrets import bundles_secret, pem, roots_secret, svid_secret
from mesh.spiffe import TrustDomain
from tests.fakes.envoy_pki import Pki, spiffe
from tests.fakes.envoy_static import decode

PKI = Pki()
LEAF = PKI.leaf(spiffe("web"))


@pytest.mark.parametrize("size", [0, 1, 47, 48, 49, 96, 1000])
def test_pem_is_what_the_standard_library_writes(size):
    der = bytes(i % 256 for i in range(size))
    text = pem("CERTIFICATE", der).decode()
    if size:
        assert text == ssl.DER_cert_to_PEM_cert(der)


def test_s17_key_and_chain_are_one_resource():
    resource = svid_secret("default", [LEAF.der, PKI.der], LEAF.key_pkcs8)
    secret = decode(resource)
    assert (resource.type_url, resource.name, secret.name) == (SECRET, "default", "default")
    chain = secret.tls_certificate.certificate_chain.inline_bytes.decode()
    assert chain == ssl.DER_cert_to_PEM_cert(LEAF.der) + ssl.DER_cert_to_PEM_cert(PKI.der)
    assert secret.tls_certificate.private_key.inline_bytes.startswith(b"-----BEGIN PRIVATE KEY-----\n")


def test_s12_equal_content_has_an_equal_version():
    one, two = (svid_secret("default", [LEAF.der], LEAF.key_pkcs8) for _ in range(2))
    assert one == two
    assert one.version != svid_secret("default", [LEAF.der], b"other").version


def test_a_secret_never_shows_its_body():
    assert "PRIVATE" not in repr(svid_secret("default", [LEAF.der], LEAF.key_pkcs8))


def test_d9c_the_root_secret_holds_roots_and_nothing_else():
    secret = decode(roots_secret("ROOTCA", [PKI.der]))
    fields = [field.name for field, _ in secret.validation_context.ListFields()]
    assert fields == ["trusted_ca"]


def test_bundles_are_kept_apart_by_trust_domain():
    secret = decode(bundles_secret("ALL", {TrustDomain("b"): [b"2"], TrustDomain("a"): [b"1", b"3"]}))
    custom = secret.validation_context.custom_validator_config
    assert custom.name == "envoy.tls.cert_validator.spiffe"
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig.FromString(custom.typed_config.value)
    assert [td.name for td in config.trust_domains] == ["a", "b"]
    assert config.trust_domains[0].trust_bundle.inline_bytes.count(b"BEGIN CERTIFICATE") == 2


def test_a_validator_without_bundles_is_refused():
    with pytest.raises(m.RenderError, match="at least one trust domain") as caught:
        bundles_secret("ALL", {})
    assert caught.value.code is m.RenderCode.OPTION
