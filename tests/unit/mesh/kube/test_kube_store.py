"""The store: what changed, who is told, when it is synced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.kube.store import Key, Store

A, B, C = ("n", "a"), ("n", "b"), ("", "c")


def _store(items: dict[Key, int]) -> tuple[Store[int], list[frozenset[Key]]]:
    store: Store[int] = Store()
    store.replace(items)
    told: list[frozenset[Key]] = []
    store.subscribe(told.append)
    return store, told


def test_replace_tells_what_differs() -> None:
    store, told = _store({A: 1, B: 2})
    store.replace({A: 1, B: 3, C: 4})
    store.replace({B: 3, C: 4})
    store.replace({B: 3, C: 4})
    assert told == [frozenset({B, C}), frozenset({A})]
    assert (len(store), store.get(*A), store.get(*C), sorted(store.values())) == (2, None, 4, [3, 4])


def test_first_list_is_told_even_when_it_is_empty() -> None:
    store: Store[int] = Store()
    told: list[frozenset[Key]] = []
    store.subscribe(told.append)
    assert (store.synced, store.wait_synced(0)) == (False, False)
    store.replace({})
    assert (store.synced, store.wait_synced(0), told) == (True, True, [frozenset()])


def test_put_and_remove_tell_changes_only() -> None:
    store, told = _store({A: 1})
    store.put(A, 1)
    store.put(A, 2)
    store.put(B, 1)
    store.remove(C)
    store.remove(A)
    assert told == [{A}, {B}, {A}]


def test_items_are_a_copy() -> None:
    store, _ = _store({A: 1})
    items = store.items()
    store.put(B, 2)
    assert items == {A: 1}


@given(st.lists(st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 2)), max_size=8))
def test_changes_lead_from_one_state_to_the_next(lists: list[dict[Key, int]]) -> None:
    """Whoever copies just the keys it was told ends with the same mapping."""
    store: Store[int] = Store()
    copy: dict[Key, int] = {}

    def follow(keys: frozenset[Key]) -> None:
        for key in keys:
            found = store.get(*key)
            if found is None:
                copy.pop(key, None)
            else:
                copy[key] = found

    store.subscribe(follow)
    for items in lists:
        store.replace(items)
        assert copy == store.items() == items
