"""Client certificates: the SVID that the caller has now proves who it is.

The TLS library has checked the chain already, by its own rules. It is verified again with the SPIFFE
rules (exactly one URI, of our trust domain, anchored in our bundle, not expired: F-54), so that what
counts does not depend on what a TLS stack lets through.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence

from ca.authn import AuthnCode, AuthnError, Caller, Method, Presented
from mesh.spiffe import SpiffeIdError, TrustDomain
from mesh.x509 import pem
from mesh.x509.pem import PemError
from mesh.x509.verify import SvidCode, SvidError, verify_svid

MAX_CHAIN = 8
MAX_CERTIFICATE_TEXT = 64 << 10
_DOMAIN_CODES = frozenset({SvidCode.TRUST_DOMAIN, SvidCode.UNTRUSTED})


class CertificateAuthenticator:
    """Callers with a verified client certificate.

    Args:
        roots: DER of the roots that are trusted now; asked for each time, they change while running.
    """

    method = Method.CERTIFICATE

    def __init__(self, trust_domain: TrustDomain, roots: Callable[[], Sequence[bytes]]) -> None:
        self._trust_domain = trust_domain
        self._roots = roots

    def authenticate(self, presented: Presented, now: dt.datetime) -> Caller | None:
        """The workload that the certificate names; None without a client certificate.

        Raises:
            AuthnError: the chain does not prove an identity of our trust domain.
        """
        if not presented.certificates:
            return None
        try:
            verified = verify_svid(
                _chain(presented.certificates), self._roots(), now, trust_domain=self._trust_domain
            )
            verified.spiffe_id.service_account()
        except SvidError as e:
            code = AuthnCode.CERTIFICATE_DOMAIN if e.code in _DOMAIN_CODES else AuthnCode.CERTIFICATE
            raise AuthnError(code, f"client certificate: {e.code}: {e.private}") from e
        except SpiffeIdError as e:
            raise AuthnError(AuthnCode.CERTIFICATE, f"client certificate: {e.private}") from e
        return Caller(
            spiffe_id=verified.spiffe_id, method=Method.CERTIFICATE, expires=verified.path_not_after
        )


def _chain(certificates: Sequence[bytes]) -> tuple[bytes, ...]:
    if len(certificates) > MAX_CHAIN:
        raise AuthnError(AuthnCode.CERTIFICATE, f"client certificate chain has {len(certificates)} elements")
    chain: list[bytes] = []
    try:
        for block in certificates:
            # grpc hands over the whole chain as one text, or one certificate per element.
            chain += pem.decode_certificates(block.decode("ascii"), max_bytes=MAX_CERTIFICATE_TEXT)
    except (PemError, UnicodeDecodeError) as e:
        raise AuthnError(AuthnCode.CERTIFICATE, "client certificate chain cannot be read") from e
    if len(chain) > MAX_CHAIN:
        raise AuthnError(AuthnCode.CERTIFICATE, f"client certificate chain has {len(chain)} certificates")
    return tuple(chain)
