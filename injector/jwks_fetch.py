"""Fetching a key set whose address a user of some namespace has written (policy.md e, SSRF).

The address is looked up once, each result is judged, and the connection goes to the judged address:
a name cannot change its mind in between. The same for every redirect, and for the address of the keys that
an issuer's description names. Loopback, link-local (which holds the metadata services of clouds),
unspecified, multicast and reserved addresses are never fetched from; private ones only where the operator
allows their network. No proxy, no credentials, no cookies; time, size and redirects are bounded; the answer
is never shown to anybody.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from mesh.errors import Category, Code, MeshError
from mesh.policy.jwks import MAX_BYTES, JwksError, parse_key_set
from mesh.policy.oidc import DiscoveryError, is_discovery, keys_address

MAX_REDIRECTS: Final = 3
TOTAL_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 5.0
_MAX_URL: Final = 2048
_STEP: Final = 64 << 10
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]
"""Host and port to the literal addresses that the host has."""


class FetchCode(Code):
    """Why there is no key set from an address."""

    URL = "jwks_url"
    SCHEME = "jwks_scheme"
    BLOCKED = "jwks_blocked_address"
    RESOLVE = "jwks_unknown_host"
    CONNECT = "jwks_unreachable"
    TLS = "jwks_tls"
    TIMEOUT = "jwks_timeout"
    STATUS = "jwks_status"
    REDIRECTS = "jwks_redirects"
    TOO_LARGE = "jwks_too_large"
    CONTENT = "jwks_content"
    DISCOVERY = "jwks_discovery"


class FetchError(MeshError):
    """No key set; the last good one stays."""

    def __init__(self, code: FetchCode, public: str) -> None:
        super().__init__(code, public, category=Category.UNAVAILABLE)


def resolve_host(host: str, port: int) -> Sequence[str]:
    """The system's resolver.

    Raises:
        OSError: the name has no address.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(info[4][0]) for info in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Fetches key sets.

    Attributes:
        private: networks of private addresses that are allowed.
        allow_http: fetch from http:// too.
        context: trusts the system's roots, and those of private issuers.
    """

    private: tuple[Network, ...] = ()
    allow_http: bool = False
    context: ssl.SSLContext
    resolve: Resolve = resolve_host
    monotonic: Callable[[], float] = time.monotonic
    total_seconds: float = TOTAL_SECONDS

    def fetch(self, url: str) -> str:
        """The key set behind an address: parsed, filtered, canonical JSON.

        The address of an issuer's description (`mesh.policy.oidc`) leads to that of its keys, which is
        judged as if it had been given, within the same time.

        Raises:
            FetchError: with the reason; never with what the other side sent.
        """
        ends = self.monotonic() + self.total_seconds
        if is_discovery(url):
            document, _ = self._document(url, ends)
            url = _described(document, url)
        return _parsed(*self._document(url, ends))

    def _document(self, url: str, ends: float) -> tuple[bytes, str]:
        """A body, and the address that it came from after all redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                found = self._get(url, ends)
            except (OSError, http.client.HTTPException) as error:
                raise self._failure(error, _host(url), ends) from error
            if isinstance(found, bytes):
                return found, url
            url = found
        raise FetchError(FetchCode.REDIRECTS, f"{_host(url)}: more than {MAX_REDIRECTS} redirects")

    def _failure(self, error: Exception, host: str, ends: float) -> FetchError:
        if isinstance(error, TimeoutError) or self.monotonic() >= ends:
            return FetchError(FetchCode.TIMEOUT, f"{host}: no whole answer within {self.total_seconds:g} s")
        if isinstance(error, ssl.SSLError):
            reason = getattr(error, "verify_message", "") or error.reason or "handshake failed"
            return FetchError(FetchCode.TLS, f"{host}: TLS: {reason}")
        return FetchError(FetchCode.CONNECT, f"{host}: {type(error).__name__} while fetching")

    def _get(self, url: str, ends: float) -> bytes | str:
        """The body, or where a redirect leads."""
        parts = self._split(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname or ""
        address = self._judged(host, port)
        with (
            contextlib.closing(self._connect(parts, address, port, ends)) as sock,
            _cut_after(sock, self._left(ends)),
        ):
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"Accept": "application/json", "User-Agent": "gatehouse-jwks", "Connection": "close"}
            connection.request("GET", target, headers=headers)
            # The response holds the connection open: both are closed.
            with contextlib.closing(connection.getresponse()) as response:
                if response.status in _REDIRECTS:
                    return urljoin(url, response.getheader("Location") or "")
                if response.status != http.HTTPStatus.OK:
                    raise FetchError(FetchCode.STATUS, f"{host}: HTTP status {response.status}")
                return self._body(response, sock, host, ends)

    def _split(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            good = len(url) <= _MAX_URL and url.isascii() and url.isprintable() and " " not in url
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise FetchError(FetchCode.URL, "not an address") from None
        if not good or not host or "@" in parts.netloc:
            raise FetchError(
                FetchCode.URL, "not an address that keys are fetched from: no user, no spaces, ASCII only"
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and self.allow_http):
            raise FetchError(FetchCode.SCHEME, f"{host}: scheme {parts.scheme[:20]!r}; allowed is https")
        return parts

    def _judged(self, host: str, port: int) -> str:
        """An address of the host, when all of them may be connected to."""
        try:
            addresses = self.resolve(host, port)
        except OSError as error:
            raise FetchError(FetchCode.RESOLVE, f"{host}: the name has no address") from error
        if not addresses:
            raise FetchError(FetchCode.RESOLVE, f"{host}: the name has no address")
        for text in addresses:
            if not self._allowed(ipaddress.ip_address(text.partition("%")[0])):
                raise FetchError(
                    FetchCode.BLOCKED,
                    f"{host}: its address is of a kind that keys are not fetched from; next: name a public"
                    " host, or have the operator add its network to upkeep.jwks.private_networks",
                )
        return addresses[0]

    def _allowed(self, address: Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address):
            # Addresses that stand for an IPv4 one are judged as that one.
            inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
            if inner is not None:
                return self._allowed(inner)
            if address in _NAT64:
                return self._allowed(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if (
            address.is_loopback
            or address.is_link_local
            or address.is_unspecified
            or address.is_multicast
            or address in _ALWAYS_BLOCKED
        ):
            return False
        if any(address in network for network in self.private):
            return True
        return address.is_global and not address.is_reserved

    def _connect(self, parts: SplitResult, address: str, port: int, ends: float) -> socket.socket:
        left = min(_CONNECT_SECONDS, self._left(ends))
        plain = socket.create_connection((address, port), timeout=left)
        if parts.scheme == "http":
            return plain
        try:
            plain.settimeout(self._left(ends))
            return self.context.wrap_socket(plain, server_hostname=parts.hostname)
        except BaseException:
            plain.close()
            raise

    def _body(self, response: http.client.HTTPResponse, sock: socket.socket, host: str, ends: float) -> bytes:
        body = b""
        while True:
            sock.settimeout(self._left(ends))
            # read1: one piece at a time, so that a slow sender meets the end of the whole time.
            part = response.read1(_STEP)
            if not part:
                self._left(ends)  # cut because the time is over?
                if response.length:
                    raise ConnectionError("cut off")
                return body
            body += part
            if len(body) > MAX_BYTES:
                raise FetchError(FetchCode.TOO_LARGE, f"{host}: the answer is over {MAX_BYTES} bytes")

    def _left(self, ends: float) -> float:
        left = ends - self.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


@contextlib.contextmanager
def _cut_after(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Cut the connection when the time is over: a head that comes byte by byte meets no time-out."""
    # The plain method: that of a TLS socket would take the TLS state away under the reader.
    timer = threading.Timer(seconds, lambda: _shut(sock))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed a moment before
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class _Blocked:
    """Metadata services outside of the link-local ranges."""

    _networks: Final = (
        ipaddress.ip_network("100.100.100.200/32"),
        ipaddress.ip_network("168.63.129.16/32"),
        ipaddress.ip_network("fd00:ec2::254/128"),
        ipaddress.ip_network("0.0.0.0/8"),
    )

    def __contains__(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


_ALWAYS_BLOCKED: Final = _Blocked()


def _parsed(body: bytes, url: str) -> str:
    try:
        return parse_key_set(body).json
    except JwksError as error:
        # Its sentence speaks of shapes and indices, never of contents.
        raise FetchError(FetchCode.CONTENT, f"{_host(url)}: {error.public}") from error


def _described(document: bytes, url: str) -> str:
    try:
        return keys_address(document, url)
    except DiscoveryError as error:
        raise FetchError(FetchCode.DISCOVERY, f"{_host(url)}: {error.public}") from error


def _host(url: str) -> str:
    with contextlib.suppress(ValueError):
        return (urlsplit(url).hostname or "")[:253]
    return "?"
