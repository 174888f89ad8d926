"""The serving certificate: contents, renewal, and the TLS context made from it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from ca.serving import Serving, ServingCode, ServingError, make_serving, server_context
from mesh.errors import Category
from mesh.x509 import pem
from mesh.x509.verify import SvidError, verify_svid
from tests.fakes.ca_factory import NOW, TRUST_DOMAIN, make_hierarchy

NAMES = ("gatehouse-ca", "127.0.0.1", "::1")
DAY = dt.timedelta(days=1)
ISSUER = make_hierarchy().issuer()


def test_contents() -> None:
    made = make_serving(ISSUER, NAMES, DAY, NOW)
    leaf, issuing = map(x509.load_der_x509_certificate, pem.decode_certificates(made.chain_pem.decode()))
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert san.value.get_values_for_type(x509.DNSName) == ["gatehouse-ca"]
    assert san.value.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"),
    ]  # fmt: skip
    eku = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(eku) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert leaf.not_valid_before_utc == NOW - dt.timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + DAY == made.not_after
    leaf.verify_directly_issued_by(issuing)


def test_an_independent_verifier_accepts_it() -> None:
    made = make_serving(ISSUER, NAMES, DAY, NOW)
    leaf, *rest = map(x509.load_der_x509_certificate, pem.decode_certificates(made.chain_pem.decode()))
    store = Store([x509.load_der_x509_certificate(r) for r in ISSUER.roots])
    for name in (x509.DNSName("gatehouse-ca"), x509.IPAddress(ipaddress.ip_address("::1"))):
        verifier = PolicyBuilder().store(store).time(NOW).build_server_verifier(name)
        assert len(verifier.verify(leaf, rest)) == 3


def test_it_is_no_svid() -> None:
    """It cannot be used as a workload's identity."""
    made = make_serving(ISSUER, NAMES, DAY, NOW)
    chain = pem.decode_certificates(made.chain_pem.decode())
    with pytest.raises(SvidError):
        verify_svid(chain, ISSUER.roots, NOW, trust_domain=TRUST_DOMAIN)


def test_it_never_outlives_its_issuer() -> None:
    end = ISSUER.not_after
    assert make_serving(ISSUER, NAMES, DAY, end - dt.timedelta(hours=1)).not_after == end
    with pytest.raises(ServingError, match="too soon") as error:
        make_serving(ISSUER, NAMES, DAY, end)
    assert error.value.code is ServingCode.EXPIRING
    assert error.value.category is Category.UNAVAILABLE


def test_renewed_half_way_and_for_a_new_issuer() -> None:
    serving = Serving(NAMES, DAY)
    assert serving.renew(ISSUER, NOW) is True
    first, context = serving.current, serving.context()
    assert serving.renew(ISSUER, NOW + dt.timedelta(hours=11)) is False
    assert serving.renew(ISSUER, NOW + dt.timedelta(hours=12)) is True
    assert serving.current.spki != first.spki
    assert serving.context() is not context
    assert serving.renew(dataclasses.replace(ISSUER), NOW + dt.timedelta(hours=12)) is True


def test_no_renewal_loop_at_the_end_of_the_issuer() -> None:
    serving, late = Serving(NAMES, DAY), ISSUER.not_after - dt.timedelta(minutes=10)
    assert serving.renew(ISSUER, late) is True
    assert serving.renew(ISSUER, late + dt.timedelta(minutes=9)) is False


def test_nothing_before_the_first() -> None:
    serving = Serving(NAMES, DAY)
    with pytest.raises(RuntimeError, match="no serving certificate"):
        _ = serving.current
    with pytest.raises(RuntimeError, match="no serving certificate"):
        serving.context()


def test_context() -> None:
    context = server_context(make_serving(ISSUER, NAMES, DAY, NOW))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    assert context.options & ssl.OP_NO_TICKET


def test_keys_are_not_in_a_repr() -> None:
    assert "PRIVATE" not in repr(make_serving(ISSUER, NAMES, DAY, NOW))
