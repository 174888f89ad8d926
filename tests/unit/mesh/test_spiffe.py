"""SPIFFE IDs: rows T-01 to T-11, and the laws of parsing and printing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.spiffe import MAX_ID_BYTES, SpiffeId, SpiffeIdCode, SpiffeIdError, TrustDomain

TD = TrustDomain("cluster.local")
SEGMENT = st.text("abcXYZ019._-", min_size=1, max_size=20).filter(lambda s: s not in {".", ".."})
TRUST_DOMAINS = st.text("abcz019._-", min_size=1, max_size=60).map(TrustDomain)
IDS = st.builds(
    SpiffeId, TRUST_DOMAINS, st.lists(SEGMENT, max_size=6).map(lambda s: "".join(f"/{x}" for x in s))
)


@settings(deadline=None)
@given(IDS)
def test_law_print_then_parse_gives_the_same_id(spiffe_id):
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id


@settings(deadline=None)
@given(
    st.one_of(st.text(max_size=80), st.text("spiffe:/abc.%@?#\n\0 ", max_size=40).map("spiffe://".__add__))
)
def test_law_parse_gives_an_id_that_prints_and_parses_or_its_own_error(text):
    try:
        spiffe_id = SpiffeId.parse(text)
    except SpiffeIdError:
        return
    assert SpiffeId.parse(str(spiffe_id)) == spiffe_id
    assert str(spiffe_id)[9:].partition("/")[2] == text[9:].partition("/")[2]  # T-04: the path is kept


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        pytest.param("SPIFFE://td/a", "spiffe://td/a", id="T-01-scheme-any-case"),
        pytest.param("spiffe://Cluster.LOCAL/a", "spiffe://cluster.local/a", id="T-02-domain-lowered"),
        pytest.param("spiffe://192.0.2.1/a", "spiffe://192.0.2.1/a", id="T-03-ipv4-passes"),
        pytest.param("spiffe://td/A-b_c.9", "spiffe://td/A-b_c.9", id="T-04-characters"),
        pytest.param("spiffe://td/...", "spiffe://td/...", id="T-05-three-dots-are-a-name"),
        pytest.param("spiffe://td", "spiffe://td", id="T-08-trust-domain"),
        pytest.param("spiffe://" + "a" * 255 + "/" + "b" * 1783, None, id="T-07-2048-bytes"),
    ],
)
def test_accepted(text, printed):
    assert str(SpiffeId.parse(text)) == (printed or text)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        pytest.param("", SpiffeIdCode.EMPTY, "is empty", id="empty"),
        pytest.param(
            "https://td/a", SpiffeIdCode.SCHEME, "must start with spiffe://", id="T-01-other-scheme"
        ),
        pytest.param("spiffe:td/a", SpiffeIdCode.SCHEME, "must start with", id="T-01-no-slashes"),
        pytest.param("spiffe:///a", SpiffeIdCode.TRUST_DOMAIN, "1 to 255", id="T-02-no-domain"),
        pytest.param("spiffe://" + "a" * 256, SpiffeIdCode.TRUST_DOMAIN, "1 to 255", id="T-02-256-bytes"),
        pytest.param("spiffe://u@td/a", SpiffeIdCode.TRUST_DOMAIN, "no scheme, port, user", id="T-03-user"),
        pytest.param("spiffe://td:8443/a", SpiffeIdCode.TRUST_DOMAIN, "port", id="T-03-port"),
        pytest.param("spiffe://t%64/a", SpiffeIdCode.TRUST_DOMAIN, "allowed are", id="T-03-percent"),
        pytest.param("spiffe://[::1]/a", SpiffeIdCode.TRUST_DOMAIN, "allowed are", id="T-03-ipv6"),
        pytest.param("spiffe://td/a%2fb", SpiffeIdCode.PATH, "'a%2fb' is not allowed", id="T-04-percent"),
        pytest.param("spiffe://td/a b", SpiffeIdCode.PATH, "not allowed", id="T-04-space"),
        pytest.param("spiffe://td/a\n", SpiffeIdCode.PATH, "not allowed", id="T-04-final-newline"),
        pytest.param("spiffe://td/ä", SpiffeIdCode.PATH, "non-ASCII", id="T-04-non-ascii"),
        pytest.param("spiffe://td//a", SpiffeIdCode.PATH, "not empty", id="T-05-empty-segment"),
        pytest.param("spiffe://td/./a", SpiffeIdCode.PATH, "not '.' or '..'", id="T-05-dot"),
        pytest.param("spiffe://td/a/..", SpiffeIdCode.PATH, "not '.' or '..'", id="T-05-dot-dot"),
        pytest.param("spiffe://td/a/", SpiffeIdCode.PATH, "no trailing slash", id="T-05-trailing-slash"),
        pytest.param("spiffe://td/", SpiffeIdCode.PATH, "no trailing slash", id="T-05-lone-slash"),
        pytest.param("spiffe://td/a?b", SpiffeIdCode.PATH, "query", id="T-06-query"),
        pytest.param("spiffe://td/a#b", SpiffeIdCode.PATH, "fragment", id="T-06-fragment"),
        pytest.param("spiffe://td?x", SpiffeIdCode.TRUST_DOMAIN, "allowed are", id="T-06-query-no-path"),
        pytest.param("spiffe://td/" + "a" * 2040, SpiffeIdCode.TOO_LONG, "2048", id="T-07-too-long"),
        pytest.param("spiffe://td/a\0", SpiffeIdCode.PATH, "not allowed", id="T-11-nul"),
    ],
)
def test_refused(text, code, words):
    with pytest.raises(SpiffeIdError) as e:
        SpiffeId.parse(text)
    assert e.value.code is code
    assert words in e.value.public


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Cluster.local", id="T-02-upper-case-in-configuration"),
        pytest.param("proj@google", id="T-09-at-sign-is-not-rewritten"),
        pytest.param("cluster.local\n", id="T-02-final-newline"),
        pytest.param("", id="T-02-empty"),
    ],
)
def test_configured_trust_domain_is_taken_literally(name):
    with pytest.raises(SpiffeIdError, match="allowed are 1 to 255") as e:
        TrustDomain(name)
    assert e.value.code is SpiffeIdCode.TRUST_DOMAIN


def test_constructing_a_path_checks_it():
    with pytest.raises(SpiffeIdError, match="must start with '/'") as e:
        SpiffeId(TD, "ns/a")
    assert e.value.code is SpiffeIdCode.PATH
    with pytest.raises(SpiffeIdError, match="longer than") as e:
        SpiffeId(TD, "/" + "a" * MAX_ID_BYTES)
    assert e.value.code is SpiffeIdCode.TOO_LONG


def test_t08_workload_and_trust_domain_ids_differ():
    assert TD.id.is_trust_domain
    assert str(TD.id) == "spiffe://cluster.local"
    assert not SpiffeId(TD, "/a").is_trust_domain


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        pytest.param("demo", "web", id="plain"),
        pytest.param("n" * 63, "s" * 63 + "." + "t" * 63, id="T-10-longest-labels"),
        pytest.param("1a", "a.b-c.d", id="T-10-dots-in-the-account"),
    ],
)
def test_t10_kubernetes_names_round_trip(namespace, name):
    spiffe_id = SpiffeId.for_service_account(TD, namespace, name)
    assert spiffe_id.service_account() == (namespace, name)
    assert len(str(spiffe_id)) < MAX_ID_BYTES


@pytest.mark.parametrize(
    ("namespace", "name", "words"),
    [
        pytest.param("n" * 64, "a", "RFC 1123 label", id="T-10-namespace-64"),
        pytest.param("a.b", "a", "RFC 1123 label", id="T-10-namespace-dot"),
        pytest.param("-a", "a", "RFC 1123 label", id="T-10-namespace-dash"),
        pytest.param("demo\n", "a", "RFC 1123 label", id="T-10-namespace-newline"),
        pytest.param("demo", "A", "RFC 1123 subdomain", id="T-10-account-upper"),
        pytest.param("demo", "a/b", "RFC 1123 subdomain", id="T-10-account-slash"),
        pytest.param("demo", ".".join(["a" * 63] * 4), "at most 253", id="T-10-account-254"),
    ],
)
def test_t10_other_names_are_refused(namespace, name, words):
    with pytest.raises(SpiffeIdError, match=words) as e:
        SpiffeId.for_service_account(TD, namespace, name)
    assert e.value.code is SpiffeIdCode.KUBERNETES_NAME


@pytest.mark.parametrize(
    "path",
    [
        "/ns/demo",
        "/ns/demo/sa/web/x",
        "/sa/demo/ns/web",
        "/ns/De/sa/web",
        "/ns/demo/sa/Web",
        "",
        "/ns/demo/sa/" + "a" * 254,
    ],
)
def test_x16_only_workload_paths_name_a_service_account(path):
    with pytest.raises(SpiffeIdError, match="is not of the form") as e:
        SpiffeId(TD, path).service_account()
    assert e.value.code is SpiffeIdCode.NOT_WORKLOAD
