"""Key sets of token issuers, and the file that holds one (F-50: huge, private, ambiguous sets)."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from ca.authn.keys import MAX_JWKS_BYTES, JwksCode, JwksError, JwksFile, parse_jwks
from mesh.errors import Category
from tests.fakes.ca_factory import NOW
from tests.fakes.ca_tokens import jwk, jwks, private_key

SECOND = dt.timedelta(seconds=1)


def entry(**changes: Any) -> dict[str, Any]:
    found = jwk(private_key("k1"), "k1") | changes
    return {name: value for name, value in found.items() if value is not None}


def document(*entries: Any) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (entry(), "RS256"),
        (entry(alg="RS256"), "RS256"),
        (entry(alg="RS384"), "RS384"),
        (entry(alg="RS512"), "RS512"),
        (entry(use=None), "RS256"),
        (entry(key_ops=["verify"], use=None), "RS256"),
        (jwk(private_key("k1", "ES256"), "k1"), "ES256"),
        (jwk(private_key("k1", "ES384"), "k1"), "ES384"),
        (jwk(private_key("k1", "ES512"), "k1", alg="ES512"), "ES512"),
    ],
)
def test_the_algorithm_comes_from_the_key(key: dict[str, Any], algorithm: str) -> None:
    assert list(parse_jwks(document(key)).keys) == [(algorithm, "k1")]


SMALL = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key()))
CUBE = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(3, 2048).public_key()))
KOBLITZ = json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256K1()).public_key()))


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        pytest.param("text", "not an object", id="text"),
        pytest.param(entry(kid=None), "kid must be text", id="no kid"),
        pytest.param(entry(kid=""), "kid must be text", id="empty kid"),
        pytest.param(entry(kid="k" * 257), "kid must be text", id="long kid"),
        pytest.param(entry(kid=["k"]), "kid must be text", id="kid is a list"),
        pytest.param({"kty": "oct", "k": "AAAA", "kid": "x"}, "kty is 'oct'", id="F-50 symmetric"),
        pytest.param(entry(kty=None), "kty is 'None'", id="no kty"),
        pytest.param(entry(use="enc"), "not meant", id="for encryption"),
        pytest.param(entry(use=None, key_ops=["encrypt"]), "not meant", id="other key_ops"),
        pytest.param(entry(d="AQAB"), "private member 'd'", id="private key"),
        pytest.param(entry(n="!"), "cannot be read", id="not base64"),
        pytest.param(entry(n=None), "cannot be read", id="no modulus"),
        pytest.param(entry(alg="HS256"), "cannot be read", id="F-50 HS256 for an RSA key"),
        pytest.param(entry(alg="PS256"), "alg 'PS256' is not used", id="PS256"),
        pytest.param(jwk(private_key("k1", "ES256"), "k1", alg="ES384"), "alg 'ES384'", id="wrong curve"),
        pytest.param(SMALL | {"kid": "k", "use": "sig", "key_ops": ["verify"]}, "1024 bits", id="RSA-1024"),
        pytest.param(CUBE | {"kid": "k", "use": "sig"}, "exponent", id="RSA e=3"),
        pytest.param(KOBLITZ | {"kid": "k", "use": "sig"}, "not used", id="secp256k1"),
    ],
)
def test_useless_entries_are_left_out(key: Any, reason: str) -> None:
    found = parse_jwks(document(key, jwk(private_key("e1", "ES256"), "good")))
    assert list(found.keys) == [("ES256", "good")]
    assert reason in found.ignored[0]
    assert found.ignored[0].startswith("keys[0]: ")
    with pytest.raises(JwksError) as error:
        parse_jwks(document(key))
    assert error.value.code is JwksCode.NO_USABLE_KEY
    assert reason in error.value.public


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        pytest.param(b" " * (MAX_JWKS_BYTES + 1), JwksCode.TOO_LARGE, "262145 bytes", id="F-50 huge set"),
        pytest.param(b"{", JwksCode.MALFORMED, "not JSON", id="no JSON"),
        pytest.param(b"[" * 100_000, JwksCode.MALFORMED, "not JSON", id="deep nesting"),
        pytest.param(b"[]", JwksCode.MALFORMED, "must be an object", id="a list"),
        pytest.param(b'{"keys": {}}', JwksCode.MALFORMED, "must be an object", id="keys is an object"),
        pytest.param(document(*[{}] * 65), JwksCode.MALFORMED, "at most 64", id="F-50 many keys"),
        pytest.param(document(), JwksCode.NO_USABLE_KEY, "the list is empty", id="empty"),
        pytest.param(document(entry(), entry()), JwksCode.AMBIGUOUS, "twice", id="same kid twice"),
    ],
)
def test_refused_documents(data: bytes, code: JwksCode, text: str) -> None:
    with pytest.raises(JwksError) as error:
        parse_jwks(data)
    assert error.value.code is code
    assert text in error.value.public
    assert error.value.category is Category.FAILED_PRECONDITION


def test_same_kid_for_two_algorithms_is_fine() -> None:
    both = document(entry(), jwk(private_key("k1", "ES256"), "k1"))
    assert sorted(parse_jwks(both).keys) == [("ES256", "k1"), ("RS256", "k1")]


# --- the file ---------------------------------------------------------------------------------------


def replace(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.rename(path)


def key_ids(file: JwksFile) -> list[str]:
    assert file.current is not None
    return sorted(key_id for _, key_id in file.current.keys)


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks({"k1": "RS256"}))
    file = JwksFile(path)
    assert file.current is None
    assert file.reload(NOW) is True
    assert file.reload(NOW) is False
    replace(path, jwks({"k1": "RS256", "e1": "ES256"}))
    assert file.reload(NOW) is True
    assert key_ids(file) == ["e1", "k1"]
    replace(path, jwks({"k1": "RS256", "e1": "ES256"}))
    assert file.reload(NOW) is False, "the same keys in another file are no change"


def test_a_broken_file_leaves_the_last_good_set(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks({"k1": "RS256"}))
    file = JwksFile(path)
    file.reload(NOW)
    replace(path, b"{")
    with pytest.raises(JwksError, match=r"jwks.json: key set is not JSON"):
        file.reload(NOW)
    assert file.reload(NOW) is False, "reported once, until it changes again"
    assert key_ids(file) == ["k1"]
    path.unlink()
    with pytest.raises(JwksError, match="cannot be read: No such file"):
        file.reload(NOW)
    assert key_ids(file) == ["k1"]
    path.write_bytes(jwks({"e1": "ES256"}))
    assert file.reload(NOW) is True
    assert key_ids(file) == ["e1"]


def test_a_swapped_symlink_is_noticed(tmp_path: Path) -> None:
    """The kubelet swaps `..data`."""
    for name, kid in (("one", "k1"), ("two", "e1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "jwks.json").write_bytes(jwks({kid: "RS256" if kid == "k1" else "ES256"}))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "jwks.json").symlink_to("..data/jwks.json")
    file = JwksFile(tmp_path / "jwks.json")
    file.reload(NOW)
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert file.reload(NOW) is True
    assert key_ids(file) == ["e1"]


def test_refresh_looks_at_most_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    file = JwksFile(path)
    assert file.refresh(NOW) is False, "a missing file is not the caller's problem"
    path.write_bytes(jwks())
    assert file.refresh(NOW + SECOND / 2) is False
    assert file.refresh(NOW + SECOND) is True
    os.utime(path, (1, 1))
    assert file.refresh(NOW + SECOND / 2) is False
    assert file.refresh(NOW - 5 * SECOND) is False, "a clock that was set back does not stop it"
    assert file.current is not None
