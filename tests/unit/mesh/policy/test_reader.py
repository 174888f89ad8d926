"""Reading untrusted values: types, limits, characters, the words of messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.effective import ObjectRef
from mesh.policy.parse import parse_policy
from mesh.policy.reader import MAX_TEXT, Node, Report, format_path, kind_of, nearest, show

KINDS = st.sampled_from(["PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"])
WORDS = st.sampled_from(
    [
        "selector", "matchLabels", "mtls", "mode", "portLevelMtls", "rules", "from", "to", "when", "source",
        "operation", "principals", "notPrincipals", "key", "values", "paths", "ports", "ipBlocks", "jwtRules",
        "issuer", "jwks", "jwksUri", "fromHeaders", "name", "prefix", "timeout", "action", "serviceAccounts",
        "targetRefs", "request.auth.claims[a]", "source.ip", "STRICT", "DENY", "*", "a*b", "10.0.0.0/8", "80",
        "/{*}/{**}", "{", "https://x/y", '{"keys":[]}', "\x00", "\ud800", "5s",
    ]
)  # fmt: skip
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.integers(), inner, max_size=6),
    max_leaves=25,
)


def node(value: object) -> Node:
    return Node(Report(ObjectRef("K", "ns", "n")), ("spec", "x"), value)


@given(KINDS, TREES)
def test_never_crashes_and_refuses_or_accepts(kind: str, spec: object) -> None:
    data = {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "p", "namespace": "foo"},
        "spec": spec,
    }
    result = parse_policy(data)
    assert (result.policy is None) == any(f.severity.value == "error" for f in result.findings)
    for finding in result.findings:
        assert str(finding).isprintable()
        assert len(finding.message) < 1000


@given(TREES)
def test_any_mapping_is_refused_or_accepted(data: object) -> None:
    if isinstance(data, dict):
        assert parse_policy(data).policy is None


@pytest.mark.parametrize(
    ("value", "code", "fragment"),
    [
        ("", "policy_empty_value", "empty text"),
        ("x" * (MAX_TEXT + 1), "policy_too_long", f"at most {MAX_TEXT}"),
        ("a\x00b", "policy_bad_character", "control characters"),
        ("a\nb", "policy_bad_character", "line breaks"),
        ("a\ud800", "policy_bad_character", "control characters"),
        (1, "policy_wrong_type", "put it in quotes"),
        (1.5, "policy_wrong_type", "the number 1.5"),
        (True, "policy_wrong_type", "the boolean True"),
        (None, "policy_wrong_type", "found null"),
        ({}, "policy_wrong_type", "found a mapping"),
        (b"x", "policy_wrong_type", "the bytes"),
    ],
)
def test_text_is_refused(value: object, code: str, fragment: str) -> None:
    n = node(value)
    assert n.text() is None
    (finding,) = n.report.findings
    assert str(finding.code) == code
    assert fragment in finding.message
    assert finding.field == "spec.x"


def test_text_may_be_empty_where_that_means_something() -> None:
    assert node("").text(may_be_empty=True) == ""


def test_lists_are_bounded_and_name_duplicates() -> None:
    n = node(["a", "b", "a", 1])
    assert [text for _, text in n.texts(most=4)] == ["a", "b"]
    assert [(str(f.code), f.field) for f in n.report.findings] == [
        ("policy_duplicate", "spec.x[2]"),
        ("policy_wrong_type", "spec.x[3]"),
    ]
    n = node(["a"] * 5)
    assert n.items(most=4) == []
    assert str(n.report.findings[0].code) == "policy_too_many"
    assert node([]).items(most=4, may_be_empty=True) == []


def test_boolean_takes_no_words() -> None:
    n = node("true")
    assert n.boolean() is None
    assert 'found the text "true", allowed is true or false' in n.report.findings[0].message
    assert node(False).boolean() is False


def test_paths_are_written_as_people_write_them() -> None:
    assert format_path(()) == ""
    assert format_path(("spec", "rules", 0, "from")) == "spec.rules[0].from"
    assert format_path(("a.b", 1)) == '["a.b"][1]'


def test_values_are_shown_short_and_printable() -> None:
    assert show("a\nb") == '"a\\nb"'
    assert show("x" * 99) == '"' + "x" * 59 + "..."
    assert show(None) == "null"
    assert kind_of([1]) == "a list"
    assert kind_of("x") == 'the text "x"'


def test_nearest_says_nothing_when_nothing_is_near() -> None:
    assert nearest("principal", ["principals", "paths"]) == "; did you mean 'principals'?"
    assert nearest("zzz", ["principals"]) == ""
