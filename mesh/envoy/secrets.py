"""SDS secrets: the SVID with its key, the roots, and the bundles of several trust domains.

A secret is serialised once, when it changes; each stream then sends the same bytes. The bodies hold
private keys: a `Resource` never shows its body.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence

from envoy.config.core.v3 import base_pb2, extension_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_spiffe_validator_config_pb2

from mesh.envoy import messages as m
from mesh.envoy.resources import SECRET, Resource
from mesh.spiffe import TrustDomain

_LINE = 64  # RFC 7468 section 2: base64 lines of exactly 64 characters


def pem(label: str, der: bytes) -> bytes:
    """One PEM block (RFC 7468)."""
    text = base64.b64encode(der)
    lines = [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
    name = label.encode()
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (name, b"\n".join(lines), name)


def _certificates(ders: Iterable[bytes]) -> base_pb2.DataSource:
    return base_pb2.DataSource(inline_bytes=b"".join(pem("CERTIFICATE", der) for der in ders))


def svid_secret(name: str, chain_der: Sequence[bytes], key_pkcs8: bytes) -> Resource:
    """The workload's certificate chain and key as *one* resource, so that they cannot mismatch (S-17).

    Args:
        name: the name that was asked for: `default`, or the workload's SPIFFE ID.
        chain_der: leaf first, then intermediates, never the root.
        key_pkcs8: DER of the unencrypted PKCS#8 private key.
    """
    secret = secret_pb2.Secret(
        name=name,
        tls_certificate=common_pb2.TlsCertificate(
            certificate_chain=_certificates(chain_der),
            private_key=base_pb2.DataSource(inline_bytes=pem("PRIVATE KEY", key_pkcs8)),
        ),
    )
    return Resource.of(SECRET, name, m.encode(secret))


def roots_secret(name: str, roots_der: Iterable[bytes]) -> Resource:
    """The roots of one trust domain, and nothing else.

    SAN matchers of a secret would be ORed with those of the TLS context and accept a wrong peer.

    Args:
        name: `ROOTCA`, or the SPIFFE ID of the trust domain.
    """
    secret = secret_pb2.Secret(
        name=name,
        validation_context=common_pb2.CertificateValidationContext(trusted_ca=_certificates(roots_der)),
    )
    return Resource.of(SECRET, name, m.encode(secret))


def bundles_secret(name: str, bundles: Mapping[TrustDomain, Sequence[bytes]]) -> Resource:
    """The bundles of several trust domains, for Envoy's SPIFFE validator.

    Each peer is checked against the roots of its own trust domain only, so that one trust domain
    cannot vouch for another.

    Args:
        name: `ALL`, as SPIRE calls it.
        bundles: roots (DER) by trust domain; at least one trust domain.
    """
    if not bundles:
        raise m.RenderError(m.RenderCode.OPTION, "a validator of bundles needs at least one trust domain")
    domain = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig.TrustDomain
    validator = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig(
        trust_domains=[
            domain(name=td.name, trust_bundle=_certificates(bundles[td])) for td in sorted(bundles)
        ]
    )
    secret = secret_pb2.Secret(
        name=name,
        validation_context=common_pb2.CertificateValidationContext(
            custom_validator_config=extension_pb2.TypedExtensionConfig(
                name="envoy.tls.cert_validator.spiffe", typed_config=m.pack(validator)
            )
        ),
    )
    return Resource.of(SECRET, name, m.encode(secret))
