"""The authority's own serving certificate: issued by itself, renewed half-way, swapped while serving.

It is not an SVID: it names the hosts that clients connect to, has no SPIFFE ID, and is good for servers
only. The key is made anew for each certificate and stays in memory.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.core import template
from ca.core.authority import Issuer
from mesh.errors import Category, Code, MeshError
from mesh.tls import load_pair
from mesh.x509 import pem
from mesh.x509.certs import KeyKind, key_identifier, public_key_bits, spki_der

BACKDATE: Final = dt.timedelta(minutes=2)
MIN_LEFT: Final = dt.timedelta(seconds=5)
HANDSHAKE_SECONDS: Final = 10.0
_OIDS: Final = {
    x509.KeyUsage: "0603551d0f",
    x509.ExtendedKeyUsage: "0603551d25",
    x509.BasicConstraints: "0603551d13",
    x509.AuthorityKeyIdentifier: "0603551d23",
    x509.SubjectKeyIdentifier: "0603551d0e",
    x509.SubjectAlternativeName: "0603551d11",
}


class ServingCode(Code):
    """Why there is no serving certificate."""

    EXPIRING = "serving_issuer_expiring"


class ServingError(MeshError):
    """No serving certificate can be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCertificate:
    """A certificate for servers, with its key.

    Attributes:
        key_pem: PKCS #8, not encrypted.
        chain_pem: leaf and intermediates.
        roots_pem: the bundle, for verifying clients.
        issuer: who signed it; a new issuer means a new serving certificate.
    """

    key_pem: bytes = field(repr=False)
    chain_pem: bytes = field(repr=False)
    roots_pem: bytes = field(repr=False)
    spki: bytes = field(repr=False)
    not_before: dt.datetime
    not_after: dt.datetime
    issuer: Issuer = field(repr=False, compare=False)


def make_serving(
    issuer: Issuer, names: Sequence[str], lifetime: dt.timedelta, now: dt.datetime
) -> ServingCertificate:
    """Make a key and issue a certificate for it.

    Args:
        names: DNS names and IP addresses.

    Raises:
        ServingError: the issuer is about to expire.
    """
    now = now.astimezone(dt.UTC).replace(microsecond=0)
    not_after = min(now + lifetime, issuer.not_after)
    if not_after - now < MIN_LEFT:
        raise ServingError(
            ServingCode.EXPIRING,
            f"the signing certificate ends {issuer.not_after.isoformat()}: too soon for a serving one",
            category=Category.UNAVAILABLE,
        )
    not_before = max(now - BACKDATE, issuer.certificate.not_before)
    key = ec.generate_private_key(ec.SECP256R1())
    spki = spki_der(key.public_key())
    tbs = template.tlv(
        0x30,
        b"".join(
            (
                template.VERSION_3,
                template.integer(x509.random_serial_number()),
                issuer.signer.algorithm,
                issuer.certificate.subject,
                template.validity(not_before, not_after),
                template.EMPTY_NAME,
                spki,
                _extensions(issuer, names, key_identifier(public_key_bits(key.public_key()))),
            )
        ),
    )
    der = template.assemble(tbs, issuer.signer.algorithm, issuer.signer.sign(tbs))
    chain = (der, *(c.der for c in issuer.chain))
    return ServingCertificate(
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        chain_pem=pem.encode_certificates(chain).encode("ascii"),
        roots_pem=pem.encode_certificates(issuer.roots).encode("ascii"),
        spki=spki,
        not_before=not_before,
        not_after=not_after,
        issuer=issuer,
    )


def _extensions(issuer: Issuer, names: Sequence[str], ski: bytes) -> bytes:
    parts = (
        _extension(template.key_usage(KeyKind.P256), critical=True),
        _extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False),
        _extension(template.LEAF_CONSTRAINTS, critical=True),
        _extension(x509.AuthorityKeyIdentifier(issuer.ski, None, None), critical=False),
        _extension(x509.SubjectKeyIdentifier(ski), critical=False),
        # Critical because the subject is empty (RFC 5280 4.2.1.6).
        _extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=True),
    )
    return template.tlv(0xA3, template.tlv(0x30, b"".join(parts)))


def _extension(value: x509.ExtensionType, *, critical: bool) -> bytes:
    flag = b"\x01\x01\xff" if critical else b""
    return template.tlv(
        0x30, bytes.fromhex(_OIDS[type(value)]) + flag + template.tlv(0x04, value.public_bytes())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Serving:
    """The certificate in force, for all the servers of a process."""

    def __init__(self, names: Sequence[str], lifetime: dt.timedelta) -> None:
        self._names = tuple(names)
        self._lifetime = lifetime
        self._lock = threading.Lock()
        self._current: ServingCertificate | None = None
        self._context: ssl.SSLContext | None = None

    @property
    def current(self) -> ServingCertificate:
        """The certificate; `renew` must have been called."""
        if self._current is None:
            raise RuntimeError("no serving certificate was made yet")
        return self._current

    def renew(self, issuer: Issuer, now: dt.datetime) -> bool:
        """Make a certificate when there is none, at half its life, or when the issuer has changed.

        Returns:
            True when there is a new one.

        Raises:
            ServingError: none can be made; the old one stays.
        """
        with self._lock:
            held = self._current
            if held is not None and held.issuer is issuer:
                half = held.not_before + (held.not_after - held.not_before) / 2
                # One that ends with its issuer cannot be replaced by a longer one.
                if now < half or held.not_after >= issuer.not_after:
                    return False
            made = make_serving(issuer, self._names, self._lifetime, now)
            self._context = server_context(made)
            self._current = made
            return True

    def context(self) -> ssl.SSLContext:
        """For the HTTPS server, which asks at each connection."""
        if self._context is None:
            raise RuntimeError("no serving certificate was made yet")
        return self._context


class _ImpatientContext(ssl.SSLContext):
    """Gives a peer that is silent in the handshake or in a request up after a while (F-29)."""

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        sock.settimeout(HANDSHAKE_SECONDS)
        return super().wrap_socket(sock, *args, **kwargs)


def server_context(certificate: ServingCertificate) -> ssl.SSLContext:
    """TLS 1.2 or newer, no client certificate, no session tickets."""
    context = _ImpatientContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Tickets would be sealed with a key that lives as long as the process.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    load_pair(context, certificate.key_pem, certificate.chain_pem)
    return context
