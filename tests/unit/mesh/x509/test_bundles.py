"""The name of a bundle depends on its roots alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.x509.bundles import bundle_digest

roots = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


@given(roots, st.randoms())
def test_order_and_repetition_do_not_matter(found: list[bytes], random: object) -> None:
    shuffled = found + found
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random
    assert bundle_digest(shuffled) == bundle_digest(found)


@given(roots, roots)
def test_other_roots_have_another_name(one: list[bytes], other: list[bytes]) -> None:
    assert (bundle_digest(one) == bundle_digest(other)) == (set(one) == set(other))


def test_no_roots_have_no_name() -> None:
    assert bundle_digest([]) == ""
