"""YAML with positions: what is accepted, where things are, and what is refused."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mesh import yamldoc
from mesh.yamldoc import YamlCode, YamlError, load_documents

POLICY = """\
# a comment
kind: AuthorizationPolicy
spec:
  rules:
    - from:
        - source:
            principals: ["a", "b"]
    -
      to:
      - operation: {methods: [GET]}
---
---
kind: Second
"""


def one(text: str) -> Any:
    (document,) = load_documents(text, "f.yaml")
    return document.data


@pytest.mark.parametrize(
    ("path", "line"),
    [
        pytest.param((), 2, id="root"),
        pytest.param(("kind",), 2, id="key"),
        pytest.param(("spec", "rules", 0, "from"), 5, id="nested"),
        pytest.param(("spec", "rules", 0, "from", 0, "source", "principals", 1), 7, id="flow-item"),
        pytest.param(("spec", "rules", 1, "to"), 9, id="second-item"),
        pytest.param(("spec", "rules", 1, "missing", "deep"), 9, id="missing-is-its-parent"),
        pytest.param(("nope",), 2, id="missing-at-root"),
    ],
)
def test_lines(path: tuple[str | int, ...], line: int) -> None:
    first, _ = load_documents(POLICY, "f.yaml")
    assert first.line_of(path) == line
    assert first.where(path) == f"f.yaml:{line}"


def test_documents_keep_their_order_and_empty_ones_are_left_out() -> None:
    first, second = load_documents(POLICY, "f.yaml")
    assert first.data["kind"] == "AuthorizationPolicy"
    assert (second.data, second.line, second.source) == ({"kind": "Second"}, 13, "f.yaml")
    assert load_documents("", "f") == load_documents("---\n...\n# x\n", "f") == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("0x1F", 31),
        ("-0b11", -3),
        ("0o17", 15),
        ("017", 15),
        ("09", "09"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("2001-01-01", "2001-01-01"),
        ("yes", True),
        ("Off", False),
        ("on", True),
        ("true", True),
        ("n", "n"),
        ("~", None),
        ("null", None),
        ("'1'", "1"),
        ('"yes"', "yes"),
        ("!!str 1", "1"),
        ("! 1", "1"),
        ("!!int '12'", 12),
        ("!!float 1", 1.0),
        ("!!bool yes", True),
        ("!!null ''", None),
        ("- 1", "- 1"),
        ("=", "="),
        ("${x}", "${x}"),
    ],
    ids=str,
)
def test_scalars_mean_what_kubectl_makes_of_them(text: str, value: object) -> None:
    quoted = text if text != "- 1" else "'- 1'"
    result = one(f"v: {quoted}\nw: 1")["v"]
    assert result == value
    assert type(result) is type(value)


def test_keys_are_the_text_as_written() -> None:
    assert one("8080: a\non: b\n'x': c\n!!str y: d\n") == {"8080": "a", "on": "b", "x": "c", "y": "d"}


def test_block_text_and_anchors() -> None:
    text = "a: &k\n  x: 1\nb: *k\nc: |\n  two\n  lines\n"
    (document,) = load_documents(text, "f")
    assert document.data == {"a": {"x": 1}, "b": {"x": 1}, "c": "two\nlines\n"}
    assert (document.line_of(("b",)), document.line_of(("b", "x"))) == (3, 2)


DEEP = "a: &a [[[[[[[[[[1]]]]]]]]]]\n" + "".join(
    f"{new}: &{new} [[[[[[[[[[*{old}]]]]]]]]]]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "code", "line", "message"),
    [
        pytest.param("a: [", YamlCode.SYNTAX, 2, "not YAML", id="unclosed"),
        pytest.param("a: 1\n b: 2", YamlCode.SYNTAX, 2, "not YAML", id="indent"),
        pytest.param("a: \x01", YamlCode.SYNTAX, 1, "control characters", id="control"),
        pytest.param("a: \ud800", YamlCode.SYNTAX, 1, "not YAML", id="half-surrogate"),
        pytest.param("a:\n\tb: 1", YamlCode.SYNTAX, 2, "not YAML", id="tab"),
        pytest.param(
            "a: 1\nb: 2\na: 3", YamlCode.DUPLICATE_KEY, 3, "'a' is written twice, first on line 1", id="twice"
        ),
        pytest.param("x: {1: a, '1': b}", YamlCode.DUPLICATE_KEY, 1, "'1' is written twice", id="same-text"),
        pytest.param("? [a]\n: b", YamlCode.KEY, 1, "a key must be plain text", id="list-key"),
        pytest.param("a: &a x\n*a : b", YamlCode.KEY, 2, "a key must be plain text", id="alias-key"),
        pytest.param("!!int 1: b", YamlCode.KEY, 1, "a key must be plain text", id="tagged-key"),
        pytest.param("a: &a {x: 1}\nb:\n  <<: *a", YamlCode.KEY, 3, "merge keys", id="merge"),
        pytest.param("a: &a [*a]", YamlCode.ALIAS, 1, "inside its own anchor", id="endless"),
        pytest.param("a: *b", YamlCode.ALIAS, 1, "has no anchor", id="no-anchor"),
        pytest.param("a: &a 1\n---\nb: *a", YamlCode.ALIAS, 3, "has no anchor", id="other-document"),
        pytest.param("a: !!python/object:os.system x", YamlCode.TAG, 1, "not supported", id="python"),
        pytest.param("a: !x [1]", YamlCode.TAG, 1, "not supported", id="tagged-list"),
        pytest.param("a: !!set {b}", YamlCode.TAG, 1, "not supported", id="tagged-map"),
        pytest.param("a: !!binary aGk=", YamlCode.TAG, 1, "not supported", id="binary"),
        pytest.param("a: !!int x", YamlCode.TAG, 1, "not of the type !!int", id="untrue-tag"),
        pytest.param("a: .inf", YamlCode.NUMBER, 1, "not a finite number", id="inf"),
        pytest.param("a: -.INF", YamlCode.NUMBER, 1, "not a finite number", id="minus-inf"),
        pytest.param("a: .nan", YamlCode.NUMBER, 1, "not a finite number", id="nan"),
        pytest.param("a: 1e999", YamlCode.NUMBER, 1, "not a finite number", id="overflow"),
        pytest.param("\na: " + "9" * 5000, YamlCode.NUMBER, 2, "number of 5000 characters", id="huge-number"),
        pytest.param("[" * 65 + "]" * 65, YamlCode.TOO_DEEP, 1, "deeper than 64", id="deep"),
        pytest.param("[" * 100_000, YamlCode.TOO_DEEP, 1, "deeper than 64", id="very-deep"),
        pytest.param(DEEP, YamlCode.TOO_DEEP, 7, "deeper than 64", id="deep-by-aliases"),
        pytest.param("[" + "1," * 300_000 + "]", YamlCode.TOO_MANY_NODES, 1, "more than 250000", id="many"),
        pytest.param("x" * (1024 * 1024 + 1), YamlCode.TOO_LARGE, 1, "longer than 1048576 bytes", id="large"),
        pytest.param(
            "\u00e9" * 600_000, YamlCode.TOO_LARGE, 1, "longer than 1048576 bytes", id="large-in-bytes"
        ),
    ],
)
def test_refusals(text: str, code: YamlCode, line: int, message: str) -> None:
    with pytest.raises(YamlError) as caught:
        load_documents(text, "dir/f.yaml")
    assert caught.value.code is code
    assert (caught.value.source, caught.value.line) == ("dir/f.yaml", line)
    assert caught.value.public.startswith(f"dir/f.yaml:{line}: ")
    assert message in caught.value.public
    assert "\n" not in caught.value.public


def test_a_billion_laughs_is_refused_before_it_is_told() -> None:
    names = "abcdefghij"
    text = f"{names[0]}: &{names[0]} [{','.join('x' * 10)}]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise(names)
    )
    with pytest.raises(YamlError, match="aliases counted each time") as caught:
        load_documents(text, "bomb")
    assert caught.value.code is YamlCode.TOO_MANY_NODES


def test_the_largest_text_that_is_allowed_is_read() -> None:
    text = "a: " + "x" * (yamldoc.MAX_BYTES - 3)
    assert len(one(text)["a"]) == yamldoc.MAX_BYTES - 3
    assert one("[" * 64 + "]" * 64)


def test_format_path() -> None:
    assert yamldoc.format_path(("spec", "rules", 0, "from")) == "spec.rules[0].from"
    assert yamldoc.format_path(()) == ""


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_json_is_read_as_json_reads_it(data: dict[str, Any]) -> None:
    """Every JSON text means the same here."""
    assert one(json.dumps(data, ensure_ascii=False)) == data


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_what_pyyaml_writes_is_read_back(data: dict[str, Any]) -> None:
    text = yaml.safe_dump(data, allow_unicode=True)
    assert one(text) == data


@given(st.text(max_size=200) | st.text("ab:-[]{}&*!|>'\"#?,\n \t%@`<", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        documents = load_documents(text, "f")
    except YamlError:
        return
    assert all(document.line_of(("x", 0)) >= 1 for document in documents)
