"""The base of every refusal."""

from __future__ import annotations

from mesh.errors import Category, Code, MeshError


class ErrorCode(Code):
    BAD_THING = "bad_thing"


def test_public_and_private_are_kept_apart() -> None:
    error = MeshError(ErrorCode.BAD_THING, "no", private="because of x", category=Category.UNAUTHENTICATED)
    assert str(error) == "no [bad_thing]"
    assert "because" not in str(error)
    assert "because" not in repr(error)
    assert (error.private, error.category) == ("because of x", Category.UNAUTHENTICATED)


def test_defaults_are_a_bad_request_without_more_to_say() -> None:
    error = MeshError(ErrorCode.BAD_THING, "field x is wrong")
    assert (error.private, error.category) == ("field x is wrong", Category.INVALID_ARGUMENT)


def test_codes_are_their_text() -> None:
    assert ErrorCode.BAD_THING == "bad_thing"
    assert f"{ErrorCode.BAD_THING}" == "bad_thing"
