"""Fetching key sets: what an address of a stranger may not make the fetcher do (policy.md e)."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from injector.jwks_fetch import FetchCode, Fetcher, FetchError
from mesh.policy.jwks import parse_key_set
from tests.fakes.injector_issuer import Issuer, key_set, sends

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


class Permissive(Fetcher):
    """Takes loopback for a public address: the issuers of these tests live there."""

    def _allowed(self, address: object) -> bool:
        return str(address) == "127.0.0.1" or Fetcher._allowed(self, address)


def loopback(host: str, port: int) -> Sequence[str]:
    return {"idp.example": ("127.0.0.1",), "evil.example": ("169.254.169.254",)}.get(host, ())


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with Issuer(tmp_path, {}) as issuer:
        yield issuer


def fetcher(issuer: Issuer, **changes: object) -> Fetcher:
    context = ssl.create_default_context(cadata=issuer.root.pem)
    options: dict[str, object] = {"context": context, "resolve": loopback, "total_seconds": 5.0} | changes
    return Permissive(**options)


def url(issuer: Issuer, path: str = "/jwks", host: str = "idp.example") -> str:
    return f"https://{host}:{issuer.port}{path}"


def refusal(issuer: Issuer, address: str, **changes: object) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetcher(issuer, **changes).fetch(address)
    return caught.value


def test_a_key_set_is_parsed_and_canonical(issuer: Issuer) -> None:
    text = key_set()
    issuer.pages["/jwks?a=b"] = sends(text)
    assert fetcher(issuer).fetch(url(issuer, "/jwks?a=b")) == parse_key_set(text).json


def test_redirects_are_followed_and_bounded(issuer: Issuer) -> None:
    issuer.pages |= {
        "/a": sends("", 302, Location="/b"),
        "/b": sends("", 307, Location=url(issuer, "/jwks")),
        "/jwks": sends(key_set()),
        "/loop": sends("", 301, Location="/loop"),
    }
    assert fetcher(issuer).fetch(url(issuer, "/a"))
    assert refusal(issuer, url(issuer, "/loop")).code is FetchCode.REDIRECTS
    assert issuer.asked.count("/loop") == 4


@pytest.mark.parametrize(
    ("target", "code"),
    [
        pytest.param("https://evil.example/x", FetchCode.BLOCKED, id="metadata-by-name"),
        pytest.param("https://169.254.169.254/x", FetchCode.RESOLVE, id="metadata-by-address"),
        pytest.param("http://idp.example/x", FetchCode.SCHEME, id="downgrade"),
        pytest.param("file:///etc/passwd", FetchCode.URL, id="file"),
        pytest.param("gopher://idp.example/x", FetchCode.SCHEME, id="gopher"),
        pytest.param("https://user:pw@idp.example/x", FetchCode.URL, id="credentials"),
    ],
)
def test_every_redirect_is_judged_like_the_first_address(
    issuer: Issuer, target: str, code: FetchCode
) -> None:
    issuer.pages["/jwks"] = sends("", 302, Location=target)
    assert refusal(issuer, url(issuer)).code is code


BLOCKED = (
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "224.0.0.1",
    "255.255.255.255", "240.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200",
    "168.63.129.16", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "ff02::1", "fc00::1", "fd00:ec2::254",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "2002:a9fe:a9fe::", "2001:db8::1", "fe80::1%eth0",
)  # fmt: skip


@pytest.mark.parametrize("address", BLOCKED)
def test_addresses_that_are_never_fetched_from(address: str) -> None:
    """SSRF: judged after resolving, whatever the name says."""
    plain = Fetcher(context=ssl.create_default_context(), resolve=lambda *_: (address,))
    with pytest.raises(FetchError, match="private_networks") as caught:
        plain.fetch("https://innocent.example/jwks")
    assert caught.value.code is FetchCode.BLOCKED
    assert address not in caught.value.public, "what a name resolves to inside is nobody's business"


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "0.0.0.0", "fd00:ec2::254"])
def test_no_configuration_allows_loopback_or_metadata(address: str) -> None:
    everything = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    plain = Fetcher(private=everything, context=ssl.create_default_context(), resolve=lambda *_: (address,))
    with pytest.raises(FetchError) as caught:
        plain.fetch("https://innocent.example/jwks")
    assert caught.value.code is FetchCode.BLOCKED


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.96.0.7", True),
        ("10.97.0.7", False),
        ("93.184.216.34", True),
        ("2606:2800::1", True),
        ("fd12::1", True),
    ],
)
def test_private_networks_are_allowed_by_the_operator(address: str, allowed: bool) -> None:
    networks = (ipaddress.ip_network("10.96.0.0/16"), ipaddress.ip_network("fd12::/16"))
    plain = Fetcher(private=networks, context=ssl.create_default_context())
    assert plain._allowed(ipaddress.ip_address(address)) is allowed


def test_one_bad_address_among_good_ones_refuses_the_host() -> None:
    plain = Fetcher(context=ssl.create_default_context(), resolve=lambda *_: ("93.184.216.34", "127.0.0.1"))
    with pytest.raises(FetchError) as caught:
        plain.fetch("https://rebind.example/")
    assert caught.value.code is FetchCode.BLOCKED


def test_the_name_is_resolved_once_for_each_connection(issuer: Issuer) -> None:
    """DNS rebinding: the judged address is the one that is connected to."""
    issuer.pages["/jwks"] = sends(key_set())
    asked: list[str] = []

    def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ("127.0.0.1",) if len(asked) == 1 else ("169.254.169.254",)

    assert fetcher(issuer, resolve=rebinding).fetch(url(issuer))
    assert asked == ["idp.example"]


@pytest.mark.parametrize(
    ("address", "code"),
    [
        pytest.param("jwks", FetchCode.URL, id="relative"),
        pytest.param("https://", FetchCode.URL, id="no-host"),
        pytest.param("https://a:b@idp.example/", FetchCode.URL, id="credentials"),
        pytest.param("https://idp.example/a b", FetchCode.URL, id="space"),
        pytest.param("https://idp.example/\r\nX: y", FetchCode.URL, id="header-splitting"),
        pytest.param("https://idp.example:99999/", FetchCode.URL, id="port"),
        pytest.param("https://[::1/", FetchCode.URL, id="bracket"),
        pytest.param("https://idp.example/" + "a" * 3000, FetchCode.URL, id="long"),
        pytest.param("https://ìdp.example/", FetchCode.URL, id="not-ascii"),
        pytest.param("http://idp.example/", FetchCode.SCHEME, id="http"),
        pytest.param("https://unknown.example/", FetchCode.RESOLVE, id="unknown-host"),
    ],
)
def test_addresses_that_are_refused(issuer: Issuer, address: str, code: FetchCode) -> None:
    assert refusal(issuer, address).code is code


def test_a_resolver_that_fails_is_told(issuer: Issuer) -> None:
    def broken(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "unknown")

    assert refusal(issuer, url(issuer), resolve=broken).code is FetchCode.RESOLVE


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        pytest.param(sends(key_set(), 500), FetchCode.STATUS, id="500"),
        pytest.param(sends("", 204), FetchCode.STATUS, id="204"),
        pytest.param(sends("secret <html>"), FetchCode.CONTENT, id="html"),
        pytest.param(sends("{}"), FetchCode.CONTENT, id="empty-object"),
        pytest.param(sends('{"keys":[]}'), FetchCode.CONTENT, id="no-keys"),
        pytest.param(sends(b" " * (1 << 20) + b"{}"), FetchCode.TOO_LARGE, id="1MiB"),
        pytest.param(
            lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), FetchCode.CONNECT, id="no-http"
        ),
        pytest.param(lambda handler: handler.connection.close(), FetchCode.CONNECT, id="hang-up"),
    ],
)
def test_bad_answers_are_refused_without_being_shown(issuer: Issuer, reply: object, code: FetchCode) -> None:
    issuer.pages["/jwks"] = reply
    error = refusal(issuer, url(issuer))
    assert error.code in {code, FetchCode.TLS} if code is FetchCode.CONNECT else error.code is code
    assert "secret" not in error.public + error.private


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_slow_sender_meets_the_end_of_the_whole_time(issuer: Issuer, part: str) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        if part == "body":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not issuer.released.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    issuer.pages["/jwks"] = drip
    started = time.monotonic()
    assert refusal(issuer, url(issuer), total_seconds=0.6).code is FetchCode.TIMEOUT
    assert time.monotonic() - started < 30, "a byte each 0.05 s would go on for ever"


def test_a_certificate_of_nobody_is_refused(issuer: Issuer, tmp_path: Path) -> None:
    issuer.pages["/jwks"] = sends(key_set())
    error = refusal(issuer, url(issuer), context=ssl.create_default_context())
    assert error.code is FetchCode.TLS
    assert issuer.asked == []


def test_plain_http_needs_the_operator(tmp_path: Path) -> None:
    with Issuer(tmp_path, {"/jwks": sends(key_set())}, tls=False) as issuer:
        address = f"http://idp.example:{issuer.port}/jwks"
        assert refusal(issuer, address).code is FetchCode.SCHEME
        assert fetcher(issuer, allow_http=True).fetch(address)


def test_nobody_there(issuer: Issuer) -> None:
    assert refusal(issuer, "https://idp.example:1/").code is FetchCode.CONNECT


# --- discovery -----------------------------------------------------------------------------------

DESCRIPTION = "/realm/.well-known/openid-configuration"


def describes(server: Issuer, **changes: object) -> None:
    """The issuer of `/realm` says where its keys are."""
    document = {"issuer": url(server, "/realm/"), "jwks_uri": url(server, "/keys")} | changes
    server.pages[DESCRIPTION] = sends(json.dumps(document))


def test_an_issuer_says_where_its_keys_are(issuer: Issuer) -> None:
    text = key_set()
    describes(issuer)
    issuer.pages["/keys"] = sends("", 302, Location="/keys/v2")
    issuer.pages["/keys/v2"] = sends(text)
    assert fetcher(issuer).fetch(url(issuer, DESCRIPTION)) == parse_key_set(text).json
    assert issuer.asked == [DESCRIPTION, "/keys", "/keys/v2"]


def test_a_description_that_moved_is_still_that_of_the_issuer_that_was_asked(issuer: Issuer) -> None:
    describes(issuer)
    issuer.pages["/elsewhere"] = issuer.pages[DESCRIPTION]
    issuer.pages[DESCRIPTION] = sends("", 302, Location="/elsewhere")
    issuer.pages["/keys"] = sends(key_set())
    assert fetcher(issuer).fetch(url(issuer, DESCRIPTION))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"issuer": "https://evil.example/realm"}, FetchCode.DISCOVERY, id="another-issuer"),
        pytest.param({"jwks_uri": None}, FetchCode.DISCOVERY, id="no-address"),
        pytest.param({"jwks_uri": "https://evil.example/x"}, FetchCode.BLOCKED, id="metadata-by-name"),
        pytest.param({"jwks_uri": "http://idp.example/keys"}, FetchCode.SCHEME, id="downgrade"),
        pytest.param({"jwks_uri": "file:///etc/passwd"}, FetchCode.URL, id="file"),
        pytest.param({"jwks_uri": "https://u:p@idp.example/keys"}, FetchCode.URL, id="credentials"),
        pytest.param({"jwks_uri": "/keys"}, FetchCode.URL, id="relative"),
    ],
)
def test_the_address_in_a_description_is_judged_like_any_other(
    issuer: Issuer, changes: dict[str, object], code: FetchCode
) -> None:
    describes(issuer, **changes)
    error = refusal(issuer, url(issuer, DESCRIPTION))
    assert error.code is code
    assert issuer.asked == [DESCRIPTION]
    assert "evil.example/realm" not in error.public


def test_a_description_that_is_none_is_refused_without_being_shown(issuer: Issuer) -> None:
    issuer.pages[DESCRIPTION] = sends("secret <html>")
    error = refusal(issuer, url(issuer, DESCRIPTION))
    assert error.code is FetchCode.DISCOVERY
    assert "secret" not in error.public + error.private


def test_description_and_keys_share_the_time(issuer: Issuer) -> None:
    """Each look-up of a name takes 20 s of 30 s: the second is too late, though each alone would not be."""
    clock = [0.0]

    def slow(host: str, port: int) -> Sequence[str]:
        clock[0] += 20.0
        return loopback(host, port)

    describes(issuer)
    error = refusal(
        issuer, url(issuer, DESCRIPTION), total_seconds=30.0, monotonic=lambda: clock[0], resolve=slow
    )
    assert error.code is FetchCode.TIMEOUT
    assert (issuer.asked, clock) == ([DESCRIPTION], [40.0])
