"""What the steps of a rotation do to the files of the Secret; and how its keys are made and renewed.

Files in, files out: nothing here is written anywhere. Whoever writes them does so in one piece.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from ca.core.hierarchy import Parent, make_cross, make_intermediate, make_root
from ca.core.signer import SigningKey
from ca.keystore import KeyStoreConfig
from ca.keystore_files import encode_key, parse_key
from ca.keystore_material import check_material
from ca.secret_files import (
    CERT,
    CROSS,
    KEY,
    NEXT_CERT,
    NEXT_FILES,
    NEXT_KEY,
    NEXT_ROOT_CERT,
    NEXT_ROOT_KEY,
    ROOT_CERT,
    ROOT_KEY,
    SecretPlace,
    certificates,
)
from mesh.ca_status import Step
from mesh.x509 import pem
from mesh.x509.certs import CertFields, KeyKind, read_certificate

CURVES: Final[Mapping[KeyKind, type[ec.EllipticCurve]]] = {
    KeyKind.P256: ec.SECP256R1,
    KeyKind.P384: ec.SECP384R1,
}


def first_files(config: KeyStoreConfig, now: dt.datetime) -> dict[str, str]:
    """A root and an intermediate."""
    root, key, files = _new_root(config, now, ROOT_CERT, ROOT_KEY)
    return files | _issuing(config, Parent(root.certificate, key), now, (CERT, KEY))


def renewed(
    place: SecretPlace, config: KeyStoreConfig, files: Mapping[str, str], now: dt.datetime
) -> dict[str, str]:
    """With a new intermediate under the same root.

    Raises:
        KeyStoreError: the root's key is not the root's, or the root has ended.
    """
    return {**files, **_reissued(place, config, files, now, (ROOT_CERT, ROOT_KEY, CERT, KEY))}


def renewed_next(
    place: SecretPlace, config: KeyStoreConfig, files: Mapping[str, str], now: dt.datetime
) -> dict[str, str]:
    """With a new intermediate under the next root. Errors: see `renewed`."""
    return {**files, **_reissued(place, config, files, now, NEXT_FILES)}


def stepped(
    place: SecretPlace, config: KeyStoreConfig, files: Mapping[str, str], step: Step, now: dt.datetime
) -> dict[str, str]:
    """The files after a step that the phase allows. `rotation.json` is left as it is.

    Raises:
        KeyStoreError: what is there cannot be used.
    """
    roots = certificates(place, files, ROOT_CERT)
    match step:
        case Step.PREPARE:
            return _prepared(place, config, files, roots, now)
        case Step.ACTIVATE:
            return _activated(place, config, files, roots, now)
        case Step.TAINT:
            return dict(files)
        case Step.RETIRE:
            kept = {name: text for name, text in files.items() if name not in {*NEXT_FILES, CROSS}}
            return kept | {ROOT_CERT: _bundle(roots[:1])}
        case Step.ABORT:
            given_up = certificates(place, files, NEXT_ROOT_CERT)[0].der
            kept = {name: text for name, text in files.items() if name not in {*NEXT_FILES, CROSS}}
            return kept | {ROOT_CERT: _bundle([root for root in roots if root.der != given_up])}


def _prepared(
    place: SecretPlace,
    config: KeyStoreConfig,
    files: Mapping[str, str],
    roots: list[CertFields],
    now: dt.datetime,
) -> dict[str, str]:
    current_key = parse_key(files[ROOT_KEY], place.where(ROOT_KEY))
    check_material(current_key, [roots[0]], roots, config.trust_domain, now)
    root, key, made = _new_root(config, now, NEXT_ROOT_CERT, NEXT_ROOT_KEY)
    made |= _issuing(config, Parent(root.certificate, key), now, (NEXT_CERT, NEXT_KEY))
    cross = make_cross(root.certificate, Parent(roots[0].certificate, current_key), now)
    # What was trusted beside the current root stays so, e.g. because its rotation was not ended.
    bundle = [roots[0], root, *roots[1:]]
    return {**files, **made, CROSS: pem.encode_certificate(cross), ROOT_CERT: _bundle(bundle)}


def _activated(
    place: SecretPlace,
    config: KeyStoreConfig,
    files: Mapping[str, str],
    roots: list[CertFields],
    now: dt.datetime,
) -> dict[str, str]:
    next_root = certificates(place, files, NEXT_ROOT_CERT)[0]
    if is_short(certificates(place, files, NEXT_CERT)[0], now):
        files = renewed_next(place, config, files, now)
    moved = {
        ROOT_KEY: files[NEXT_ROOT_KEY],
        CERT: files[NEXT_CERT],
        KEY: files[NEXT_KEY],
        ROOT_CERT: _bundle([next_root, *(root for root in roots if root.der != next_root.der)]),
    }
    return {name: text for name, text in files.items() if name not in NEXT_FILES} | moved


def is_short(certificate: CertFields, now: dt.datetime) -> bool:
    """True when less than a third of its life is left."""
    life = certificate.not_after - certificate.not_before
    return certificate.not_after - now < life / 3


def _bundle(roots: list[CertFields]) -> str:
    return pem.encode_certificates(root.der for root in roots)


def _new_root(
    config: KeyStoreConfig, now: dt.datetime, cert_file: str, key_file: str
) -> tuple[CertFields, SigningKey, dict[str, str]]:
    key = ec.generate_private_key(CURVES[config.curve]())
    root = read_certificate(make_root(config.trust_domain, key, now, config.root_lifetime))
    return root, key, {cert_file: pem.encode_certificate(root.der), key_file: encode_key(key)}


def _reissued(
    place: SecretPlace,
    config: KeyStoreConfig,
    files: Mapping[str, str],
    now: dt.datetime,
    names: tuple[str, str, str, str],
) -> dict[str, str]:
    root_cert, root_key, cert_file, key_file = names
    roots = certificates(place, files, root_cert)
    parent_key = parse_key(files[root_key], place.where(root_key))
    check_material(parent_key, [roots[0]], roots, config.trust_domain, now)
    return _issuing(config, Parent(roots[0].certificate, parent_key), now, (cert_file, key_file))


def _issuing(
    config: KeyStoreConfig, parent: Parent, now: dt.datetime, names: tuple[str, str]
) -> dict[str, str]:
    key = ec.generate_private_key(CURVES[config.curve]())
    der = make_intermediate(config.trust_domain, key, parent, now, config.issuing_lifetime)
    return {names[0]: pem.encode_certificate(der), names[1]: encode_key(key)}
