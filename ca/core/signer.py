"""Signing keys behind an interface: a key signs, and never leaves.

A file key today; a PKCS#11 token or a remote signer has the same three members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from ca.core.profile import MAX_RSA_BITS, MIN_RSA_BITS, RSA_EXPONENT
from mesh.errors import Category, Code, MeshError
from mesh.x509.certs import KeyKind, key_info

ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
ECDSA_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")
RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class SignerCode(Code):
    """Why a key cannot sign certificates."""

    KEY_TYPE = "signer_key_type"


class SignerError(MeshError):
    """A signing key of a type that is not allowed."""


class Signer(Protocol):
    """Signs bytes with a key that stays where it is."""

    @property
    def algorithm(self) -> bytes:
        """DER AlgorithmIdentifier of the signatures."""
        ...

    @property
    def public_key(self) -> PublicKeyTypes:
        """The public half."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Signature of `data`."""
        ...

    def verify(self, signature: bytes, data: bytes) -> bool:
        """True when `signature` is this key's signature of `data`."""
        ...


class KeySigner:
    """A key in memory: P-256, P-384, or RSA of 2048 to 4096 bits.

    Raises:
        SignerError: another kind of key.
    """

    __slots__ = ("_sign", "_verify", "algorithm", "public_key")

    def __init__(self, key: SigningKey) -> None:
        public = key.public_key()
        info = key_info(public)
        good_rsa = MIN_RSA_BITS <= info.bits <= MAX_RSA_BITS and info.exponent == RSA_EXPONENT
        if info.kind not in {KeyKind.P256, KeyKind.P384} and not (info.kind is KeyKind.RSA and good_rsa):
            raise SignerError(
                SignerCode.KEY_TYPE,
                f"CA key is {info.name}; allowed are P-256, P-384 and RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS}"
                f" bits with e={RSA_EXPONENT}",
                category=Category.FAILED_PRECONDITION,
            )
        self.public_key: PublicKeyTypes = public
        self.algorithm = {KeyKind.P256: ECDSA_SHA256, KeyKind.P384: ECDSA_SHA384}.get(info.kind, RSA_SHA256)
        self._sign, self._verify = _operations(key, info.kind)

    def __repr__(self) -> str:
        return f"KeySigner({key_info(self.public_key).name})"

    def sign(self, data: bytes) -> bytes:
        """Signature of `data`; DER for ECDSA, PKCS #1 v1.5 for RSA."""
        return self._sign(data)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """True when `signature` is this key's signature of `data`."""
        try:
            self._verify(signature, data)
        except InvalidSignature:
            return False
        return True


def _operations(
    key: SigningKey, kind: KeyKind
) -> tuple[Callable[[bytes], bytes], Callable[[bytes, bytes], None]]:
    """How the key signs and verifies, chosen once."""
    if isinstance(key, rsa.RSAPrivateKey):
        rsa_key, rsa_public = key, key.public_key()
        pad, digest = padding.PKCS1v15(), hashes.SHA256()
        return (
            lambda data: rsa_key.sign(data, pad, digest),
            lambda signature, data: rsa_public.verify(signature, data, pad, digest),
        )
    ec_key, ec_public = key, key.public_key()
    ecdsa = ec.ECDSA(hashes.SHA384() if kind is KeyKind.P384 else hashes.SHA256())
    return (
        lambda data: ec_key.sign(data, ecdsa),
        lambda signature, data: ec_public.verify(signature, data, ecdsa),
    )
