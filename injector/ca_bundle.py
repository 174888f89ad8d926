"""The `caBundle` of our webhook configurations: reading, comparing, the smallest patch, and a real call.

Configurations that are ours carry our label; entries that are ours name our Service. Only
`clientConfig.caBundle` of those is ever touched, by a JSON Patch that tests what it replaces.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime as dt
import http.client
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.x509 import verification as path
from cryptography.x509.oid import ExtendedKeyUsageOID

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
            at = f"{_GROUP}/{kind}/{item['metadata']['name']}"
            found += _entries(item, at, namespace, service)
    return tuple(found)


def _entries(item: Mapping[str, Any], at: str, namespace: str, service: str) -> Iterable[Entry]:
    for index, webhook in enumerate(item.get("webhooks") or ()):
        client = webhook.get("clientConfig") or {}
        target = client.get("service") or {}
        if (target.get("namespace"), target.get("name")) == (namespace, service):
            raw = client.get("caBundle")
            yield Entry(at, index, str(webhook.get("name", "")), _decoded(raw), raw)


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


def bundle_of(roots: Sequence[bytes]) -> str:
    """PEM of the roots, each once, in their order: equal sequences give equal text.

    Raises:
        BundleError: no root, or too many.
    """
    unique = list(dict.fromkeys(roots))
    if not 0 < len(unique) <= MAX_ROOTS:
        raise BundleError(
            BundleCode.ROOTS,
            f"{len(unique)} roots for the caBundle; allowed are 1 to {MAX_ROOTS}",
            category=Category.FAILED_PRECONDITION,
        )
    return pem.encode_certificates(unique)


def left_over(current: Sequence[bytes], published: Iterable[str], now: dt.datetime) -> tuple[bytes, ...]:
    """Roots that are published, still valid, and no longer in force: old leaves may hang on them.

    Args:
        current: DER of the roots in force.
        published: PEM of the bundles that are in the configurations now.
    """
    found = dict.fromkeys(der for text in published for der in _read_roots(text))
    return tuple(der for der in found if der not in current and _is_valid_ca(der, now))


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
    """True when an API server with this caBundle takes this chain for this DNS name.

    Key identifiers are not demanded of authorities: what people make with openssl often has none.
    """
    agnostic = path.Criticality.AGNOSTIC
    authorities = path.ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, agnostic, None)
    leaves = path.ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, agnostic, None)
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        roots = x509.load_pem_x509_certificates(bundle_pem.encode("ascii"))
        usage = chain[0].extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        verifier = (
            path.PolicyBuilder()
            .store(path.Store(roots))
            .time(now.astimezone(dt.UTC).replace(tzinfo=None))
            .extension_policies(ca_policy=authorities, ee_policy=leaves)
            .build_server_verifier(x509.DNSName(name))
        )
        verifier.verify(chain[0], chain[1:])
    except (ValueError, UnicodeEncodeError, path.VerificationError):
        return False
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in usage


def call(host: str, port: int, server_name: str, bundle_pem: str, page: str = "/livez") -> None:
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
            connection.request("GET", page, headers={"Connection": "close"})
            with contextlib.closing(connection.getresponse()) as response:
                status = response.status
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BundleError(
            BundleCode.CALL,
            f"https://{server_name} at {host}:{port} with the published caBundle: {error}",
            category=Category.UNAVAILABLE,
        ) from error
    if status != http.HTTPStatus.OK:
        raise BundleError(
            BundleCode.CALL,
            f"https://{server_name} at {host}:{port}: {page} answered {status}",
            category=Category.UNAVAILABLE,
        )
