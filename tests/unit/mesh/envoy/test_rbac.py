"""Predicates -> Envoy RBAC: what cannot be tried on a running proxy, or must not get there."""

from __future__ import annotations

import itertools
import re

import pytest
from envoy.extensions.rbac.principals.mtls_authenticated.v3 import mtls_authenticated_pb2
from hypothesis import given
from hypothesis import strategies as st

from mesh.envoy import messages as m
from mesh.envoy import rbac
from mesh.policy.predicates import (
    NEVER,
    AllOf,
    Always,
    AnyOf,
    Claim,
    DestinationIp,
    DestinationPort,
    DirectSourceIp,
    Header,
    Host,
    MatchKind,
    Method,
    Not,
    Path,
    PathTemplate,
    PeerNamespace,
    PeerServiceAccount,
    PeerTrustDomain,
    PeerUri,
    RemoteIp,
    Sni,
    StringMatch,
)
from mesh.spiffe import TrustDomain
from tests.fakes.envoy_inputs import PRESENT, exact, prefix, suffix

TDS = (TrustDomain("cluster.local"), TrustDomain("old.example"))


def policy(principal=Always(), permission=Always(), *, http=True):  # noqa: B008 - frozen
    return rbac.policy(principal, permission, TDS, http=http)


def sans(principal):
    """URI matchers of a principal that is one leaf, or an OR of leaves."""
    found = policy(principal).principals[0]
    each = found.or_ids.ids if found.HasField("or_ids") else [found]
    configs = [mtls_authenticated_pb2.Config.FromString(item.custom.typed_config.value) for item in each]
    assert {config.san_matcher.san_type for config in configs} == {3}  # URI
    return [config.san_matcher.matcher for config in configs]


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        pytest.param(
            PeerNamespace(exact("x")),
            ["spiffe://cluster.local/ns/x/", "spiffe://old.example/ns/x/"],
            id="exact",
        ),
        pytest.param(
            PeerNamespace(prefix("x")),
            ["spiffe://cluster.local/ns/x", "spiffe://old.example/ns/x"],
            id="prefix",
        ),
        pytest.param(
            PeerNamespace(PRESENT), ["spiffe://cluster.local/ns/", "spiffe://old.example/ns/"], id="present"
        ),
        pytest.param(PeerTrustDomain(exact("old.example")), ["spiffe://old.example/"], id="trust-domain"),
        pytest.param(PeerTrustDomain(prefix("c")), ["spiffe://cluster.local/"], id="trust-domain-prefix"),
        pytest.param(
            PeerTrustDomain(PRESENT),
            ["spiffe://cluster.local/", "spiffe://old.example/"],
            id="any-trust-domain",
        ),
        pytest.param(PeerUri(PRESENT), ["spiffe://"], id="any-peer"),
        pytest.param(PeerUri(prefix("")), ["spiffe://"], id="empty-prefix-is-any-peer"),
        pytest.param(PeerUri(prefix("spiffe://a/")), ["spiffe://a/"], id="uri-prefix"),
    ],
)
def test_identities_are_prefixes_and_not_regular_expressions(leaf, expected):
    assert [matcher.prefix for matcher in sans(leaf)] == expected


def test_service_account_is_exact_in_each_trust_domain():
    assert [matcher.exact for matcher in sans(PeerServiceAccount("n", "a.b"))] == [
        "spiffe://cluster.local/ns/n/sa/a.b",
        "spiffe://old.example/ns/n/sa/a.b",
    ]


def test_parts_of_a_policy_that_is_an_or_stand_at_the_top():
    found = policy(
        AnyOf((DirectSourceIp("10.0.0.0/8"), RemoteIp("10.0.0.1"))), AnyOf((DestinationPort(1), Sni(PRESENT)))
    )
    assert [p.WhichOneof("identifier") for p in found.principals] == ["direct_remote_ip", "remote_ip"]
    assert [p.WhichOneof("rule") for p in found.permissions] == ["destination_port", "requested_server_name"]


def test_single_parts_need_no_level_of_their_own():
    found = policy(permission=AllOf((AnyOf((DestinationPort(1),)),)))
    assert found.permissions[0].destination_port == 1


def test_never_is_not_any():
    found = policy(NEVER, NEVER)
    assert found.permissions[0].not_rule.any is True
    assert found.principals[0].not_id.any is True
    assert found == rbac.never_policy()


def test_not_of_never_is_a_double_negation():
    assert policy(permission=Not(NEVER)).permissions[0].not_rule.not_rule.any is True


REFUSED = {
    "empty-conjunction": (AllOf(()), Always(), True, "conjunction of nothing"),
    "peer-as-permission": (Always(), PeerUri(PRESENT), True, "PeerUri can only be a principal"),
    "address-as-permission": (
        Always(),
        DirectSourceIp("10.0.0.0/8"),
        True,
        "DirectSourceIp can only be a principal",
    ),
    "remote-as-permission": (Always(), RemoteIp("10.0.0.0/8"), True, "RemoteIp can only be a principal"),
    "port-as-principal": (DestinationPort(1), Always(), True, "DestinationPort can only be a permission"),
    "ip-as-principal": (DestinationIp("::/0"), Always(), True, "DestinationIp can only be a permission"),
    "sni-as-principal": (Sni(PRESENT), Always(), True, "Sni can only be a permission"),
    "not-a-cidr": (DirectSourceIp("10.0.0.0/99"), Always(), True, "'10.0.0.0/99' is not an address block"),
    "template-without-slash": (Always(), PathTemplate("a/{*}"), True, "must start with '/'"),
    "template-with-part-of-a-segment": (Always(), PathTemplate("/a{*}"), True, "whole segments"),
    "template-with-a-variable": (Always(), PathTemplate("/{name}"), True, "whole segments"),
    "template-with-an-operator-after-the-rest": (
        Always(),
        PathTemplate("/{**}/{*}"),
        True,
        "as the last operator",
    ),
    "tcp-path": (Always(), Path(exact("/")), False, "Path needs a request"),
    "tcp-template": (Always(), PathTemplate("/{*}"), False, "PathTemplate needs a request"),
    "tcp-method": (Always(), Not(Method(exact("GET"))), False, "Method needs a request"),
    "tcp-host": (Always(), AnyOf((Host(exact("h")),)), False, "Host needs a request"),
    "tcp-header": (Header("x", PRESENT), Always(), False, "Header needs a request"),
    "tcp-claim": (Claim(("sub",), PRESENT), Always(), False, "Claim needs a request"),
}


@pytest.mark.parametrize(("principal", "permission", "http", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(principal, permission, http, message):
    with pytest.raises(m.RenderError, match=re.escape(message)) as caught:
        policy(principal, permission, http=http)
    assert caught.value.code is m.RenderCode.PREDICATE


def matches(matcher, text: str) -> bool:
    """What Envoy's StringMatcher says; regular expressions match in full."""
    kind = matcher.WhichOneof("match_pattern")
    if kind == "safe_regex":
        return re.fullmatch(matcher.safe_regex.regex, text) is not None
    value = getattr(matcher, kind)
    if matcher.ignore_case:
        value, text = value.lower(), text.lower()
    return {"exact": text == value, "prefix": text.startswith(value), "suffix": text.endswith(value)}[kind]


def host_matches(match, text):
    found = policy(permission=Host(match)).permissions[0]
    each = found.or_rules.rules if found.HasField("or_rules") else [found]
    assert {item.header.name for item in each} == {":authority"}
    return any(item.header.present_match or matches(item.header.string_match, text) for item in each)


HOSTS = st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){0,2}", fullmatch=True)


@given(HOSTS, st.sampled_from(["", ":80", ":8443", ".", ".:80"]), st.booleans())
def test_law_every_spelling_of_a_host_is_the_host(host, tail, upper):
    spelling = (host.upper() if upper else host) + tail
    for rule in (host, f"{host}."):
        assert host_matches(exact(rule), spelling)
    assert host_matches(suffix(host[-1]), spelling)
    assert not host_matches(exact(f"x{host}"), spelling)


@pytest.mark.parametrize("value", ["h:80", "[::1]:80"])
def test_a_rule_with_a_port_means_that_port(value):
    assert host_matches(exact(value), value.upper())
    assert not host_matches(exact(value), value.rpartition(":")[0])


def test_an_address_in_brackets_is_no_port():
    assert host_matches(exact("[::1]"), "[::1]:8080")


@pytest.mark.parametrize("match", [PRESENT, prefix(""), suffix("")], ids=["present", "prefix", "suffix"])
def test_any_host(match):
    assert host_matches(match, "anything")


def template(text):
    return policy(permission=PathTemplate(text)).permissions[0].url_path.path


SEGMENT = st.text(
    st.characters(blacklist_characters="/{}\n", blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8
)


@given(st.lists(SEGMENT, min_size=1, max_size=4), st.lists(SEGMENT, min_size=0, max_size=3))
def test_law_templates(path, rest):
    whole = "/" + "/".join(path)
    assert matches(template(whole), whole)
    for i in range(len(path)):
        hole = [*path]
        hole[i] = "{*}"
        assert matches(template("/" + "/".join(hole)), whole)
        assert not matches(template("/" + "/".join(hole)), whole + "/x")
    assert matches(template(whole + "/{**}"), "/".join([whole, *rest]) if rest else whole + "/")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_law_quoted_text_matches_itself_only(text):
    assert re.fullmatch(m.quoted(text), text)
    assert not re.fullmatch(m.quoted(text), text + "x")


def test_quoting_escapes_punctuation_only():
    punctuation = "".join(
        map(chr, itertools.chain(range(33, 48), range(58, 65), range(91, 97), range(123, 127)))
    )
    for character in punctuation:
        expected = character if character == "_" else f"\\{character}"
        assert m.quoted(character) == expected
    assert m.quoted("aZ09_é") == "aZ09_é"


@pytest.mark.parametrize(
    ("leaf", "text", "other"),
    [
        pytest.param(
            PeerUri(suffix("/sa/a.b")), "spiffe://x/ns/y/sa/a.b", "spiffe://x/ns/y/sa/axb", id="uri"
        ),
        pytest.param(PeerUri(suffix("/sa/a")), "spiffe://x/ns/y/sa/a", "https://x/ns/y/sa/a", id="scheme"),
        pytest.param(
            PeerNamespace(suffix("a.b")),
            "spiffe://cluster.local/ns/xa.b/sa/y",
            "spiffe://cluster.local/ns/axb/sa/y",
            id="namespace",
        ),
        pytest.param(
            PeerNamespace(suffix("a")),
            "spiffe://old.example/ns/a/sa/y",
            "spiffe://old.example/ns/b/sa/a/",
            id="namespace-ends-at-a-slash",
        ),
    ],
)
def test_suffixes_are_quoted_and_bounded(leaf, text, other):
    assert any(matches(matcher, text) for matcher in sans(leaf))
    assert not any(matches(matcher, other) for matcher in sans(leaf))


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param(PeerTrustDomain(exact("foreign")), id="foreign-trust-domain"),
        pytest.param(PeerTrustDomain(suffix(".org")), id="trust-domain-suffix"),
        pytest.param(PeerNamespace(exact("a/sa/b")), id="namespace-with-a-slash"),
    ],
)
def test_leaves_that_can_never_hold(leaf):
    assert policy(leaf).principals[0] == rbac.never_policy().principals[0]


@pytest.mark.parametrize(
    ("match", "pattern", "value"),
    [
        (exact("a"), "exact", "a"),
        (prefix("a"), "prefix", "a"),
        (suffix("a"), "suffix", "a"),
    ],
)
def test_string_matchers(match, pattern, value):
    assert getattr(m.string_matcher(match), pattern) == value


@pytest.mark.parametrize("match", [PRESENT, prefix(""), suffix("")], ids=["present", "prefix", "suffix"])
def test_present_is_any_text_even_with_line_breaks(match):
    matcher = m.string_matcher(match)
    assert matches(matcher, "a\nb")
    assert not matches(matcher, "")


def test_ignore_case_is_kept():
    assert m.string_matcher(StringMatch(MatchKind.EXACT, "a", ignore_case=True)).ignore_case is True


def test_cidr_host_bits_are_cleared_and_ipv6_is_known():
    found = policy(AnyOf((DirectSourceIp("10.1.2.3/8"), DirectSourceIp("2001:db8::1"))))
    one, two = (item.direct_remote_ip for item in found.principals)
    assert (one.address_prefix, one.prefix_len.value) == ("10.0.0.0", 8)
    assert (two.address_prefix, two.prefix_len.value) == ("2001:db8::1", 128)
