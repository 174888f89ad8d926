"""The Secret with the authority's keys as files: names, decoding, and checking of what stands in it.

`root-cert.pem`, `root-key.pem`, `ca-cert.pem` and `ca-key.pem` are always there. The first block of
`root-cert.pem` is the root of the signing key; further blocks are trusted too. So a program that knows
nothing of rotations still reads it rightly, in every phase.

During a rotation (docs/adr/0014) there are also `next-root-cert.pem`, `next-root-key.pem`, `next-ca-cert.pem`
and `next-ca-key.pem` while the next root waits, and `cross-cert.pem` while a former root may be trusted alone
by somebody. `rotation.json` says where the rotation stands; without it none has ever been.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ca.core.authority import Issuer
from ca.core.rotation import RotationError, RotationState
from ca.core.rotation_codec import decode_state
from ca.keystore import KeyStoreCode, KeyStoreConfig, KeyStoreError
from ca.keystore_files import MAX_FILE_BYTES, parse_key
from ca.keystore_material import Material, check_cross, check_material, parse_certificates
from mesh.ca_status import Phase
from mesh.x509.certs import CertFields

SECRET_TYPE: Final = "gatehouse.dev/ca-root"  # noqa: S105 - a name
ROOT_CERT: Final = "root-cert.pem"
ROOT_KEY: Final = "root-key.pem"
CERT: Final = "ca-cert.pem"
KEY: Final = "ca-key.pem"
NEXT_ROOT_CERT: Final = "next-root-cert.pem"
NEXT_ROOT_KEY: Final = "next-root-key.pem"
NEXT_CERT: Final = "next-ca-cert.pem"
NEXT_KEY: Final = "next-ca-key.pem"
CROSS: Final = "cross-cert.pem"
ROTATION: Final = "rotation.json"
FILES: Final = (ROOT_CERT, ROOT_KEY, CERT, KEY)
NEXT_FILES: Final = (NEXT_ROOT_CERT, NEXT_ROOT_KEY, NEXT_CERT, NEXT_KEY)
_OPTIONAL: Final = (*NEXT_FILES, CROSS, ROTATION)
_NEEDED: Final[Mapping[Phase, tuple[str, ...]]] = {
    Phase.STABLE: FILES,
    Phase.PREPARED: (*FILES, *NEXT_FILES, CROSS),
    Phase.ACTIVE: (*FILES, CROSS),
    Phase.TAINTED: (*FILES, CROSS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretPlace:
    """Where the keys are.

    Attributes:
        name: of the Secret, and of the ConfigMap that records its root.
        root_config_map: another trace of an earlier root, in the same namespace.
        force_new_root: make a root although there are traces of an earlier one.
    """

    namespace: str
    name: str = "gatehouse-ca"
    root_config_map: str = "istio-ca-root-cert"
    force_new_root: bool = False

    @property
    def secrets(self) -> str:
        """Path of the collection."""
        return f"/api/v1/namespaces/{self.namespace}/secrets"

    @property
    def secret(self) -> str:
        """Path of the Secret."""
        return f"{self.secrets}/{self.name}"

    @property
    def config_maps(self) -> str:
        """Path of the collection."""
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    @property
    def config_map(self) -> str:
        """Path of the record."""
        return f"{self.config_maps}/{self.name}"

    def where(self, file: str) -> str:
        """A file of the Secret, for messages."""
        return f"Secret {self.namespace}/{self.name} {file}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a Secret holds, checked.

    Attributes:
        material: the issuer, with the cross certificate in its chain when there is one.
        plain: the same issuer without it; the very same object when there is none.
        plain_from: from then on `plain` is the one to use: the cross certificate would end before a leaf.
        next_certificate: the intermediate that signs after activate; None unless prepared.
        next_root: its root.
    """

    state: RotationState
    material: Material
    plain: Issuer
    plain_from: dt.datetime | None
    next_certificate: CertFields | None = None
    next_root: CertFields | None = None

    def issuer(self, now: dt.datetime) -> Issuer:
        """The issuer to use now; the same object until something changes."""
        if self.plain_from is not None and now >= self.plain_from:
            return self.plain
        return self.material.issuer


def decode(place: SecretPlace, secret: Mapping[str, Any]) -> dict[str, str]:
    """The known files of a Secret, as text.

    Raises:
        KeyStoreError: a file is missing that is always there, or one is no text.
    """
    data = secret.get("data")
    if not isinstance(data, dict):
        data = {}
    _check_complete(place, data, FILES)
    return {name: _text(place, name, data[name]) for name in (*FILES, *_OPTIONAL) if data.get(name)}


def _check_complete(place: SecretPlace, files: Mapping[str, Any], needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if not files.get(name)]
    if missing:
        raise KeyStoreError(
            KeyStoreCode.INCOMPLETE,
            f"Secret {place.namespace}/{place.name} has no {', '.join(missing)}; all of"
            f" {', '.join(needed)} are needed: restore it",
        )


def _text(place: SecretPlace, name: str, value: object) -> str:
    try:
        raw = base64.b64decode(str(value), validate=True)
        text = raw.decode("ascii")
    except (binascii.Error, UnicodeDecodeError) as e:
        raise KeyStoreError(KeyStoreCode.FILE, f"{place.where(name)} is not a PEM text") from e
    if len(raw) > MAX_FILE_BYTES:
        raise KeyStoreError(KeyStoreCode.FILE, f"{place.where(name)} has over {MAX_FILE_BYTES} bytes")
    return text


def encode(files: Mapping[str, str]) -> dict[str, str]:
    """`data` of a Secret."""
    return {name: base64.b64encode(text.encode("ascii")).decode("ascii") for name, text in files.items()}


def version(secret: Mapping[str, Any]) -> str:
    """`resourceVersion`: changes with each write."""
    return str((secret.get("metadata") or {}).get("resourceVersion", ""))


def certificates(place: SecretPlace, files: Mapping[str, str], name: str) -> list[CertFields]:
    """The certificates of a file.

    Raises:
        KeyStoreError: it holds something else.
    """
    return parse_certificates(files[name], place.where(name))


def read(place: SecretPlace, config: KeyStoreConfig, files: Mapping[str, str], now: dt.datetime) -> Contents:
    """Check everything that a Secret holds.

    Raises:
        KeyStoreError: with the first rule that is broken.
    """
    try:
        state = decode_state(files.get(ROTATION))
    except RotationError as e:
        raise KeyStoreError(KeyStoreCode.ROTATION, f"{place.where(ROTATION)}: {e.public}") from e
    _check_complete(place, files, _NEEDED[state.phase])
    roots = certificates(place, files, ROOT_CERT)
    key = parse_key(files[KEY], place.where(KEY))
    material = check_material(key, certificates(place, files, CERT), roots, config.trust_domain, now)
    numbered = replace(material.issuer, generation=state.generation, epoch=state.epoch)
    contents = Contents(
        state=state, material=replace(material, issuer=numbered), plain=numbered, plain_from=None
    )
    if state.phase is Phase.STABLE:
        return contents
    if material.anchor.der != roots[0].der:
        raise KeyStoreError(
            KeyStoreCode.CHAIN, f"{place.where(ROOT_CERT)}: the first root is not the one of the signing key"
        )
    cross = certificates(place, files, CROSS)[0]
    if state.phase is Phase.PREPARED:
        check_cross(cross, certificates(place, files, NEXT_ROOT_CERT)[0], roots[:1], place.where(CROSS))
        return _with_next(place, config, files, contents, now)
    check_cross(cross, roots[0], roots[1:], place.where(CROSS))
    crossed = replace(numbered, chain=(*numbered.chain, cross), cross=cross)
    return replace(
        contents,
        material=replace(material, issuer=crossed),
        plain_from=cross.not_after - config.leaf_lifetime,
    )


def _with_next(
    place: SecretPlace,
    config: KeyStoreConfig,
    files: Mapping[str, str],
    contents: Contents,
    now: dt.datetime,
) -> Contents:
    """Check what waits to be activated: a step that breaks the mesh must fail while it can be taken back."""
    roots = certificates(place, files, ROOT_CERT)
    root = certificates(place, files, NEXT_ROOT_CERT)[0]
    if root.der not in {r.der for r in roots[1:]}:
        raise KeyStoreError(
            KeyStoreCode.CHAIN, f"{place.where(NEXT_ROOT_CERT)} is not among the trusted roots of {ROOT_CERT}"
        )
    own = certificates(place, files, NEXT_CERT)
    # One that nobody renewed in time does no harm yet: it is renewed before it is used.
    at = min(now, own[0].not_after - dt.timedelta(seconds=1))
    key = parse_key(files[NEXT_KEY], place.where(NEXT_KEY))
    check_material(key, own, [root], config.trust_domain, at)
    root_key = parse_key(files[NEXT_ROOT_KEY], place.where(NEXT_ROOT_KEY))
    check_material(root_key, [root], [root], config.trust_domain, now)
    return replace(contents, next_certificate=own[0], next_root=root)
