"""Configuration on discovery streams: order, endpoints after clusters (P4), refusals (P7), F-72 to F-76."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2 as d

from mesh.envoy.resources import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, SECRET, ResourceSet
from mesh.errors import Category
from nodeagent.core.subscriptions import SessionCode, SessionError, SessionLimits
from tests.fakes.agent_model import LABEL, Wires, resource, resources, shown
from tests.fakes.agent_session import IDENTITY, OTHER, acked, drained, sds, secret, secrets

BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


# --- configuration ------------------------------------------------------------------------------


@BOTH
def test_not_compiled_yet_is_silence_never_emptiness(delta: bool) -> None:
    wires = Wires(delta=delta, config=None, secrets=secrets())
    for short in ("CDS", "LDS"):
        assert wires.ask(short) == []
    for short in ("EDS", "RDS", "ECDS"):
        assert wires.ask(short, "a") == []
    assert shown(wires.ask("SDS", "ROOTCA")) == [("SDS", ["ROOTCA"])]
    assert shown(wires.publish(config=ResourceSet())) == [("CDS", []), ("LDS", [])]


@BOTH
def test_order_on_ads_make_before_break(delta: bool) -> None:
    wires = Wires(delta=delta, config=None, secrets=ResourceSet(), identity=IDENTITY)
    for short in ("LDS", "CDS"):
        wires.ask(short)
    for short in ("ECDS", "RDS", "EDS"):
        wires.ask(short, "a")
    wires.ask("SDS", "ROOTCA")
    wires.publish(secrets=secrets())
    session = wires.new_session()
    for short in ("LDS", "CDS"):
        wires.ask(short)
    for short in ("ECDS", "RDS", "EDS"):
        wires.ask(short, "a")
    responses = wires.publish(
        config=resources(*((s, "a", "1") for s in ("LDS", "CDS", "EDS", "RDS", "ECDS")))
    )
    assert [LABEL[r.type_url] for r in responses] == ["CDS", "EDS", "LDS", "RDS", "ECDS"]
    assert session.revision == wires.snapshot.revision


@BOTH
def test_p4_changed_cluster_is_followed_by_its_endpoints(delta: bool) -> None:
    before = resources(("CDS", "a", "1"), ("CDS", "b", "1"), ("EDS", "a", "1"), ("EDS", "b", "1"))
    after = resources(("CDS", "a", "2"), ("CDS", "b", "1"), ("EDS", "a", "1"), ("EDS", "b", "1"))
    wires = Wires(delta=delta, config=before)
    acked(wires, "CDS", wires.ask("CDS"))
    acked(wires, "EDS", wires.ask("EDS", "a", "b"), "a", "b")
    # The clusters were sent before the endpoints: nothing is owed.
    responses = wires.publish(config=after)
    assert [LABEL[r.type_url] for r in responses] == ["CDS", "EDS"]
    assert [x.name for x in responses[1].resources] == ["a"]
    looks_like_an_ack = wires.ask("EDS", *(() if delta else ("a", "b")), nonce=responses[1].nonce)
    assert looks_like_an_ack == []


@BOTH
def test_p4_endpoints_in_flight_before_the_cluster_do_not_count(delta: bool) -> None:
    wires = Wires(delta=delta, config=resources(("CDS", "a", "1"), ("EDS", "a", "1")))
    acked(wires, "CDS", wires.ask("CDS"))
    wires.ask("EDS", "a")  # unanswered
    responses = wires.publish(config=resources(("CDS", "a", "2"), ("EDS", "a", "1")))
    assert shown(responses) == [("CDS", ["a"]), ("EDS", ["a"])]


def test_p4_delta_reconnect_with_a_changed_cluster_and_known_endpoints() -> None:
    config = resources(("CDS", "a", "2"), ("EDS", "a", "1"))
    wires = Wires(delta=True, config=config)
    wires.ask("CDS", versions={"a": "older"})
    responses = wires.ask("EDS", "a", versions={"a": config.of_type(ENDPOINT)["a"].version})
    assert shown(responses) == [("EDS", ["a"])]


@BOTH
def test_removed_cluster_goes_after_its_referrers(delta: bool) -> None:
    before = resources(("CDS", "a", "1"), ("CDS", "b", "1"), ("LDS", "l", "to-b"))
    wires = Wires(delta=delta, config=before)
    acked(wires, "CDS", wires.ask("CDS"))
    acked(wires, "LDS", wires.ask("LDS"))
    responses = wires.publish(config=resources(("CDS", "a", "1"), ("LDS", "l", "to-a")))
    assert shown(responses) == [("LDS", ["l"])]
    last = acked(wires, "LDS", responses)
    assert [LABEL[r.type_url] for r in last] == ["CDS"]
    if delta:
        assert (last[0].resources, last[0].removed) == ((), ("b",))
    else:
        assert shown(last) == [("CDS", ["a"])]


@BOTH
def test_removed_cluster_stays_while_its_referrer_is_refused(delta: bool) -> None:
    wires = Wires(delta=delta, config=resources(("CDS", "a", "1"), ("LDS", "l", "1")))
    acked(wires, "CDS", wires.ask("CDS"))
    acked(wires, "LDS", wires.ask("LDS"))
    responses = wires.publish(config=resources(("CDS", "c", "1"), ("LDS", "l", "bad")))
    assert sorted(x.name for x in responses[0].resources) == (["c"] if delta else ["a", "c"])
    acked(wires, "CDS", responses[:1])
    text = "Error adding/updating listener(s) l: no"
    assert wires.ask("LDS", nonce=responses[1].nonce, nack=text) == []
    fixed = wires.publish(config=resources(("CDS", "c", "1"), ("LDS", "l", "good")))
    last = acked(wires, "LDS", fixed)
    assert last[0].type_url == CLUSTER


@BOTH
def test_ecds_deny_then_allow_then_tokens_one_by_one(delta: bool) -> None:
    names = ("jwt", "authz-allow", "authz-audit", "authz-deny")
    wires = Wires(delta=delta, config=resources(*(("ECDS", n, "1") for n in names)))
    every = drained(wires, "ECDS", wires.ask("ECDS", *names), *names)
    assert [n for _, [n] in shown(every)] == ["authz-deny", "authz-allow", "authz-audit", "jwt"]


@BOTH
def test_rds_goes_one_by_one(delta: bool) -> None:
    wires = Wires(delta=delta, config=resources(("RDS", "a", "1"), ("RDS", "b", "1")))
    first = wires.ask("RDS", "a", "b")
    assert shown(first) == [("RDS", ["a"])]
    assert shown(acked(wires, "RDS", first, "a", "b")) == [("RDS", ["b"])]


def test_eds_sotw_sends_only_what_changed() -> None:
    wires = Wires(config=resources(("EDS", "a", "1"), ("EDS", "b", "1")))
    acked(wires, "EDS", wires.ask("EDS", "a", "b"), "a", "b")
    assert shown(wires.publish(config=resources(("EDS", "a", "1"), ("EDS", "b", "2")))) == [("EDS", ["b"])]


def test_sotw_roots_hold_everything_delta_only_the_change() -> None:
    before = resources(("LDS", "a", "1"), ("LDS", "b", "1"))
    after = resources(("LDS", "a", "1"), ("LDS", "b", "2"))
    for delta, names in ((False, ["a", "b"]), (True, ["b"])):
        wires = Wires(delta=delta, config=before)
        acked(wires, "LDS", wires.ask("LDS"))
        assert shown(wires.publish(config=after)) == [("LDS", names)]


def test_roots_may_be_superseded_while_unanswered() -> None:
    """A client that warms a cluster withholds its answer; the way out may be the next version."""
    for delta in (False, True):
        wires = Wires(delta=delta, config=resources(("CDS", "a", "1"), ("EDS", "x", "1")))
        wires.ask("CDS")
        responses = wires.publish(config=resources(("CDS", "b", "1")))
        assert [LABEL[r.type_url] for r in responses] == ["CDS"]


# --- refusals -----------------------------------------------------------------------------------


@BOTH
def test_nack_of_listeners_is_booked_by_the_names_in_the_text(delta: bool) -> None:
    wires = Wires(delta=delta, config=resources(("LDS", "l1", "1"), ("LDS", "l2", "1"), ("LDS", "l3", "1")))
    first = wires.ask("LDS")
    text = "Error adding/updating listener(s) l2: Provider 'p' has invalid local jwks: no [keys] field"
    wires.ask("LDS", nonce=first[0].nonce, nack=text)
    view = wires.status.view()
    assert [view[LISTENER, n].refused is None for n in ("l1", "l2", "l3")] == [True, False, True]
    assert [view[LISTENER, n].accepted is None for n in ("l1", "l2", "l3")] == [False, True, False]
    assert view[LISTENER, "l2"].message == text
    assert wires.events.nacks == [(LISTENER, ("l2",), text)]


def test_nack_without_names_suspects_what_was_not_accepted_before() -> None:
    """CDS caught while decoding: nothing is applied and no cluster is named (prototype 5)."""
    wires = Wires(config=resources(("CDS", "a", "1"), ("CDS", "b", "1")))
    acked(wires, "CDS", wires.ask("CDS"))
    changed = wires.publish(config=resources(("CDS", "a", "1"), ("CDS", "b", "2")))
    wires.ask("CDS", nonce=changed[0].nonce, nack="Invalid duration: Expected positive duration")
    view = wires.status.view()
    assert view[CLUSTER, "a"].refused is None
    assert view[CLUSTER, "b"].refused == changed[0].resources[1].version
    fixed = wires.publish(config=resources(("CDS", "a", "1"), ("CDS", "b", "3")))
    acked(wires, "CDS", fixed)
    assert all(status.refused is None for status in wires.status.view().values())


@BOTH
def test_endpoints_refused_in_a_crowd_are_sent_one_by_one_once(delta: bool) -> None:
    wires = Wires(delta=delta, config=resources(*(("EDS", n, "1") for n in "abc")))
    names = ("a", "b", "c")
    crowd = wires.ask("EDS", *names)
    assert shown(crowd) == [("EDS", ["a", "b", "c"])]
    again: tuple[str, ...] = () if delta else names
    first = wires.ask("EDS", *again, nonce=crowd[0].nonce, nack="Proto constraint validation failed")
    assert shown(first) == [("EDS", ["a"])]
    second = wires.ask("EDS", *again, nonce=first[0].nonce)
    third = wires.ask("EDS", *again, nonce=second[0].nonce, nack="Proto constraint validation failed")
    assert shown(second) == [("EDS", ["b"])]
    assert shown(third) == [("EDS", ["c"])]
    assert wires.ask("EDS", *again, nonce=third[0].nonce) == []
    refused = {name for (_, name), status in wires.status.view().items() if status.refused}
    assert refused == {"b"}


def test_p7_refused_hash_stays_refused_though_the_same_bytes_are_acked() -> None:
    wires = Wires(config=resources(("ECDS", "jwt", "bad")))
    first = wires.ask("ECDS", "jwt")
    wires.ask("ECDS", "jwt", nonce=first[0].nonce, nack="bad jwks")
    wires.new_session()
    again = wires.ask("ECDS", "jwt")
    acked(wires, "ECDS", again, "jwt")
    status = wires.status.view()[EXTENSION_CONFIG, "jwt"]
    assert (status.accepted, status.refused) == (None, again[0].resources[0].version)
    acked(wires, "ECDS", wires.publish(config=resources(("ECDS", "jwt", "good"))), "jwt")
    assert wires.status.view()[EXTENSION_CONFIG, "jwt"].refused is None


# --- hostile requests ---------------------------------------------------------------------------


MANY = [f"n{i}" for i in range(11)]


@pytest.mark.parametrize(
    ("delta", "last"),
    [
        pytest.param(False, {"subscribe": ()}, id="list"),
        pytest.param(True, {"subscribe": MANY}, id="subscribe"),
        pytest.param(True, {"unsubscribe": MANY}, id="unsubscribe"),
        pytest.param(True, {"versions": dict.fromkeys(MANY, "1")}, id="versions"),
        pytest.param(True, {"subscribe": ["n10"]}, id="added-up"),
    ],
)
def test_f72_too_many_names_end_the_stream(delta: bool, last: dict[str, Any]) -> None:
    wires = sds(delta=delta, limits=SessionLimits(names=10))
    wires.ask("SDS", *MANY[:10])
    listed = () if delta else MANY
    with pytest.raises(SessionError, match="at most 10") as caught:
        wires.ask("SDS", *listed, **last)
    assert (caught.value.code, caught.value.category) == (
        SessionCode.TOO_MANY_NAMES,
        Category.RESOURCE_EXHAUSTED,
    )


@pytest.mark.parametrize("name", ["x" * 65536, "é" * 2000], ids=["64KiB", "utf8"])
@BOTH
def test_f72_long_name_ends_the_stream(name: str, delta: bool) -> None:
    with pytest.raises(SessionError, match="longer than 2048 bytes") as caught:
        sds(delta=delta).ask("SDS", name)
    assert caught.value.code is SessionCode.NAME_TOO_LONG


@pytest.mark.parametrize("type_url", [CLUSTER, "type.googleapis.com/envoy.api.v2.auth.Secret", "x"])
@BOTH
def test_f75_sds_refuses_other_types(type_url: str, delta: bool) -> None:
    with pytest.raises(SessionError, match="this service serves") as caught:
        sds(delta=delta).ask(type_url, "default")
    assert (caught.value.code, caught.value.category) == (SessionCode.TYPE_URL, Category.INVALID_ARGUMENT)


@BOTH
def test_f75_empty_type_is_secret_on_sds_and_refused_on_ads(delta: bool) -> None:
    assert shown(sds(delta=delta).ask("", "default")) == [("SDS", ["default"])]
    with pytest.raises(SessionError, match="ADS carries"):
        Wires(delta=delta).ask("", "default")


@BOTH
def test_f75_ads_leaves_an_unknown_type_waiting(delta: bool) -> None:
    """An Envoy that wants one type too many keeps all its others."""
    wires = Wires(delta=delta, config=resources(("LDS", "a", "1")), limits=SessionLimits(unknown_types=1))
    runtime = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
    assert wires.ask(runtime, "rtds") == []
    assert wires.ask(runtime, "rtds") == []
    assert wires.events.unknown == [("demo/web", runtime, "")]
    assert shown(wires.ask("LDS")) == [("LDS", ["a"])]
    with pytest.raises(SessionError, match="too many types") as caught:
        wires.ask("another", "x")
    assert caught.value.code is SessionCode.TOO_MANY_TYPES


@pytest.mark.parametrize("nonce", ["n2", "n99", "random", "\U0001f600"])
def test_f76_unknown_nonce_is_ignored(nonce: str) -> None:
    wires = sds()
    assert wires.ask("SDS", "default", nonce="")[0].nonce == "n1"
    assert wires.ask("SDS", "default", "ROOTCA", nonce=nonce) == []
    assert wires.ask("SDS", "default", "ROOTCA", nonce=nonce, nack="no") == []
    assert wires.status.view() == {}
    assert shown(wires.ask("SDS", "default", "ROOTCA", nonce="n1")) == [("SDS", ["ROOTCA"])]


def test_unanswered_responses_are_bounded() -> None:
    wires = Wires(config=resources(("LDS", "a", "0")))
    wires.ask("LDS")
    for i in range(100):
        wires.publish(config=resources(("LDS", "a", str(i + 1))))
    assert len(wires.session._subscriptions[LISTENER].outstanding) == 32


def test_fetch_answers_all_that_exists_in_one_response() -> None:
    wires = sds()
    request = d.DiscoveryRequest(resource_names=["ROOTCA", "default", OTHER])
    response = wires.session.fetch(request)
    assert [r.name for r in response.resources] == ["ROOTCA", "default"]
    assert wires.events.unauthorised == [("demo/web", SECRET, OTHER)]
    everything = wires.session.fetch(d.DiscoveryRequest(type_url=SECRET))
    assert sorted(r.name for r in everything.resources) == ["ROOTCA", "default"]


@BOTH
def test_encoded_responses_share_the_body(delta: bool) -> None:
    wires = Wires(delta=delta, config=resources(("LDS", "a", "body-of-a")))
    response = wires.ask("LDS")[0]
    assert response.resources[0].body is wires.snapshot.config.of_type(LISTENER)["a"].body
    if delta:
        message = d.DeltaDiscoveryResponse.FromString(response.encode())
        assert (message.resources[0].name, message.resources[0].version) == (
            "a",
            response.resources[0].version,
        )
        assert message.resources[0].resource.value == b"body-of-a"
    else:
        plain = d.DiscoveryResponse.FromString(response.encode())
        assert (plain.version_info, plain.nonce, plain.type_url) == (response.version, "n1", LISTENER)
        assert plain.resources[0].value == b"body-of-a"


def test_key_is_not_shown() -> None:
    wires = sds(secrets=ResourceSet([secret("default", "hush")]))
    assert "hush" not in repr(wires.ask("SDS", "default"))
    assert "hush" not in repr(resource(SECRET, "x", "hush"))
