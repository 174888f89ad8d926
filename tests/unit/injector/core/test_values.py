"""Parsers of values that the table of options does not reach."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.values import amount, component_levels, image, quantity, strict_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("100m", "0.1"),
        ("1.5", "1.5"),
        ("2k", "2000"),
        ("1Ki", "1024"),
        ("1Gi", str(2**30)),
        ("5u", "0.000005"),
        ("7n", "0.000000007"),
        ("1E", str(10**18)),
        ("1Ei", str(2**60)),
    ],
)
def test_amounts(text: str, value: str) -> None:
    assert amount(text) == Decimal(value)
    assert quantity(text) == text


def test_a_bad_amount() -> None:
    with pytest.raises(ValueError, match="expected a quantity"):
        amount("1e999999")


@given(st.text(max_size=60))
def test_no_text_breaks_a_parser(text: str) -> None:
    for parse in (quantity, image, component_levels, strict_json):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - any text may be good or bad, but never crash


@pytest.mark.parametrize(
    "text", ["a/b", "registry.example/a/b:1", "localhost:5000/x@sha256:" + "a" * 64, "r/a.b_c-d/e:T_1.x"]
)
def test_images(text: str) -> None:
    assert image(text) == text


def test_a_long_image_is_refused_quickly() -> None:
    with pytest.raises(ValueError, match="expected an image"):
        image("a/" + "a-" * 5000)
    with pytest.raises(ValueError, match="expected an image"):
        image("a/" + "a-" * 200)
