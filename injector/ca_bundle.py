"""The `caBundle` of our webhook configurations: reading, comparing, the smallest patch, and a real call.

Configurations that are ours carry our label; entries that are ours name our Service. Only
`clientConfig.caBundle` of those is ever touched, by a JSON Patch that tests what it replaces.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import http.client
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.x509 import verification

from mesh.errors import Category, Code, MeshError
from mesh.kube.api import KubeApi
from mesh.x509 import pem

_GROUP: Final = "/apis/admissionregistration.k8s.io/v1"
KINDS: Final = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
MAX_ROOTS: Final = 64
_CALL_SECONDS: Final = 5.0


class BundleCode(Code):
    """Why a bundle is no good."""

    CALL = "bundle_call_failed"
    ROOTS = "bundle_roots"


class BundleError(MeshError):
    """A caBundle that does not work, or roots that cannot be read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry `webhooks[index]` of a configuration that calls our Service.

    Attributes:
        path: of the configuration, for the API.
        bundle_pem: decoded caBundle; empty when there is none or it is no text.
        raw: the field as it is, None when it is absent.
    """

    path: str
    index: int
    name: str
    bundle_pem: str
    raw: str | None


def list_entries(api: KubeApi, selector: str, namespace: str, service: str) -> tuple[Entry, ...]:
    """Entries that call the Service, of all configurations with the label.

    Raises:
        KubeError: the API server did not answer, or forbids it.
    """
    found: list[Entry] = []
    for kind in KINDS:
        listing = api.get(f"{_GROUP}/{kind}", labelSelector=selector)
        for item in listing.get("items") or ():
            path = f"{_GROUP}/{kind}/{item['metadata']['name']}"
            found += _entries(item, path, namespace, service)
    return tuple(found)


def _entries(item: Mapping[str, Any], path: str, namespace: str, service: str) -> Iterable[Entry]:
    for index, webhook in enumerate(item.get("webhooks") or ()):
        client = webhook.get("clientConfig") or {}
        target = client.get("service") or {}
        if (target.get("namespace"), target.get("name")) == (namespace, service):
            raw = client.get("caBundle")
            yield Entry(path, index, str(webhook.get("name", "")), _decoded(raw), raw)


def _decoded(raw: str | None) -> str:
    try:
        return base64.b64decode(raw or "", validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""


def patch_of(entries: Sequence[Entry], bundle_pem: str) -> list[dict[str, Any]]:
    """Operations that give these entries of one configuration the bundle; empty when they have it.

    Each change is guarded by a test of the entry's name: entries may have moved since they were read.
    """
    value = base64.b64encode(bundle_pem.encode("ascii")).decode("ascii")
    operations: list[dict[str, Any]] = []
    for entry in entries:
        if entry.raw != value:
            at = f"/webhooks/{entry.index}"
            operations.append({"op": "test", "path": f"{at}/name", "value": entry.name})
            operations.append({"op": "add", "path": f"{at}/clientConfig/caBundle", "value": value})
    return operations


def merged(current: Sequence[bytes], published: Iterable[str], now: dt.datetime) -> str:
    """The bundle to publish: current roots, and those already published that are still valid.

    So old and new roots overlap during a rotation: a root leaves the bundle when it has expired. The
    order is stable (current roots first), so that equal sets give equal text.

    Args:
        current: DER of the roots in force.
        published: PEM of the bundles that are in the configurations now.

    Raises:
        BundleError: no root, or too many.
    """
    roots = list(dict.fromkeys(current))
    for text in published:
        for der in _read_roots(text):
            if der not in roots and _is_valid_ca(der, now):
                roots.append(der)
    if not 0 < len(roots) <= MAX_ROOTS:
        raise BundleError(
            BundleCode.ROOTS,
            f"{len(roots)} roots for the caBundle; allowed are 1 to {MAX_ROOTS}",
            category=Category.FAILED_PRECONDITION,
        )
    return pem.encode_certificates(roots)


def _read_roots(text: str) -> tuple[bytes, ...]:
    try:
        return pem.decode_certificates(text) if text else ()
    except MeshError:
        return ()


def _is_valid_ca(der: bytes, now: dt.datetime) -> bool:
    try:
        certificate = x509.load_der_x509_certificate(der)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return constraints.ca and certificate.not_valid_after_utc > now


def verifies(chain_pem: bytes, bundle_pem: str, name: str, now: dt.datetime) -> bool:
    """True when an API server with this caBundle takes this chain for this DNS name."""
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        roots = x509.load_pem_x509_certificates(bundle_pem.encode("ascii"))
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store(roots))
            .time(now)
            .build_server_verifier(x509.DNSName(name))
        )
        verifier.verify(chain[0], chain[1:])
    except (ValueError, UnicodeEncodeError, verification.VerificationError):
        return False
    return True


def call(host: str, port: int, server_name: str, bundle_pem: str, path: str = "/livez") -> None:
    """Call the webhook as an API server would: TLS, this bundle, this name.

    Raises:
        BundleError: with what went wrong.
    """
    try:
        context = ssl.create_default_context(cadata=bundle_pem)
        with (
            socket.create_connection((host, port), timeout=_CALL_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=server_name) as tls,
        ):
            connection = http.client.HTTPConnection(server_name)
            connection.sock = tls
            connection.request("GET", path, headers={"Connection": "close"})
            status = connection.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BundleError(
            BundleCode.CALL,
            f"https://{server_name} at {host}:{port} with the published caBundle: {error}",
            category=Category.UNAVAILABLE,
        ) from error
    if status != http.HTTPStatus.OK:
        raise BundleError(
            BundleCode.CALL,
            f"https://{server_name} at {host}:{port}: {path} answered {status}",
            category=Category.UNAVAILABLE,
        )
