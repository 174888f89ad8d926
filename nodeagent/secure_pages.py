"""The agent's pages by TLS, with a certificate of the authority for the agent's own service account.

Off unless `metrics_tls.listen` is set. Nothing depends on it: without a certificate the port is closed, and
the agent does its work. The key is made anew for each certificate and stays in memory.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import ssl
from collections.abc import Mapping
from typing import Final

from cryptography import x509

from mesh.clock import Clock
from mesh.errors import Category, Code, MeshError
from mesh.obs.logs import logger
from mesh.tls import load_pair
from mesh.x509.certs import CertError, CertFields, read_certificate
from mesh.x509.pem import decode_certificates, encode, encode_certificates
from nodeagent.config import MetricsTlsSettings
from nodeagent.core.rotation import Priority
from nodeagent.core.schedule import CAP, FIRST_STEP, TICK, RenewalPlan, plan_renewal
from nodeagent.http import HttpServer, Route
from nodeagent.keys import new_server_request
from nodeagent.rotator import Signer

_log = logger("nodeagent.secure_pages")
_MAX_EXPONENT: Final = 16


class PagesCode(Code):
    """Why a certificate for the pages is not used."""

    MALFORMED = "pages_reply_malformed"
    KEY = "pages_wrong_key"
    NAME = "pages_wrong_name"


class PagesError(MeshError):
    """The authority's answer cannot be served with."""

    def __init__(self, code: PagesCode, public: str) -> None:
        super().__init__(code, public, category=Category.INTERNAL)


class SecurePages:
    """Keeps a certificate, and serves with it.

    Args:
        routes: by path, see `nodeagent.http`.
        signer: the client of the authority.

    Attributes:
        problem: why the last attempt gave no certificate.
    """

    def __init__(
        self,
        settings: MetricsTlsSettings,
        routes: Mapping[str, Route],
        signer: Signer,
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._signer = signer
        self._clock, self._rng = clock, rng
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        self._context.num_tickets = 0
        self._plan: RenewalPlan | None = None
        self._failures = 0
        self.problem: Exception | None = None
        self.server: HttpServer | None = None
        if settings.listen is not None:
            self.server = HttpServer(settings.listen, routes, context=self._context)

    @property
    def not_after(self) -> dt.datetime | None:
        """End of the certificate in force; None while there is none."""
        return self._plan.not_after if self._plan else None

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            OSError: the address cannot be used.
        """
        if self.server is None:
            return
        started = False
        try:
            while True:
                wait = await self.step()
                if self._plan is not None and not started:
                    await self.server.start()
                    started = True
                    _log.info("metrics are served by TLS", listen=self.server.address)
                await asyncio.sleep(wait)
        finally:
            if started:
                await self.server.stop()

    async def step(self) -> float:
        """Renew the certificate if that is due; returns the seconds to wait."""
        if self._plan is not None and not self._plan.due(self._clock.now()):
            return TICK
        try:
            await self._renew()
        except (MeshError, ssl.SSLError) as error:
            self.problem = error
            _log.warning("no certificate for metrics by TLS", error=error, tries=self._failures + 1)
            self._failures = min(self._failures + 1, _MAX_EXPONENT)
            return self._rng.uniform(0.5, 1.0) * min(CAP, FIRST_STEP * 2.0**self._failures)
        self._failures, self.problem = 0, None
        return TICK

    async def _renew(self) -> None:
        key, csr_pem = new_server_request(self._settings.name)
        reply = await self._signer.sign(
            csr_pem=csr_pem, token_file=self._settings.token_file, priority=Priority.ROUTINE
        )
        now = self._clock.now()
        chain, leaf = _checked(reply.cert_chain, key.spki, self._settings.name, now)
        load_pair(self._context, encode("PRIVATE KEY", key.pkcs8).encode("ascii"), chain)
        self._plan = plan_renewal(
            not_before=leaf.not_before, not_after=leaf.not_after, issued_at=now, rng=self._rng
        )


def _checked(
    cert_chain: tuple[str, ...], spki: bytes, name: str, now: dt.datetime
) -> tuple[bytes, CertFields]:
    """Leaf and intermediates as PEM: our key, our name, valid now; scrapers verify the rest."""
    try:
        ders = [der for block in cert_chain[:-1] for der in decode_certificates(block)]
        leaf = read_certificate(ders[0])
        san = x509.load_der_x509_certificate(ders[0]).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        names = san.value.get_values_for_type(x509.DNSName)
    except (MeshError, CertError, ValueError, IndexError, x509.ExtensionNotFound) as error:
        raise PagesError(PagesCode.MALFORMED, f"the reply for {name} is no chain: {error}") from error
    if leaf.spki != spki:
        raise PagesError(PagesCode.KEY, f"the certificate for {name} has another key")
    if name not in names or now >= leaf.not_after:
        raise PagesError(
            PagesCode.NAME,
            f"the certificate is not good for {name}; next: grant the name to the agent's service account in"
            " the authority's configuration (serving_grants)",
        )
    return encode_certificates(ders).encode("ascii"), leaf
