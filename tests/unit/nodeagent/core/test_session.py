"""Rules of discovery streams, one by one: S-01 to S-19, F-71."""

from __future__ import annotations

import pytest
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2 as d

from mesh.envoy.resources import LISTENER, SECRET, ResourceSet
from nodeagent.core.snapshot import IdentitySnapshot
from tests.fakes.agent_model import Wires, resources, shown
from tests.fakes.agent_session import IDENTITY, OTHER, OWN, acked, drained, sds, secret, secrets

BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


# --- stream basics ------------------------------------------------------------------------------


@BOTH
def test_s01_node_is_remembered_from_the_first_request(delta: bool) -> None:
    wires = sds(delta=delta)
    first = wires.ask("SDS", "ROOTCA", node="web.demo")
    acked(wires, "SDS", first, "ROOTCA")
    assert wires.session.node_id == "web.demo"
    wires.ask("SDS", "ROOTCA", nonce=first[-1].nonce, node="another")
    assert wires.session.node_id == "web.demo"


@BOTH
def test_s02_each_response_has_a_nonce_of_its_own(delta: bool) -> None:
    wires = sds(delta=delta)
    first = wires.ask("SDS", "ROOTCA", "default")
    rest = drained(wires, "SDS", first, "ROOTCA", "default")
    assert len({r.nonce for r in rest}) == len(rest) == 2
    assert all(r.nonce for r in rest)


@BOTH
def test_s03_nack_is_error_detail_and_nothing_else(delta: bool) -> None:
    wires = sds(delta=delta)
    first = wires.ask("SDS", "ROOTCA")
    wires.ask("SDS", *(() if delta else ("ROOTCA",)), nonce=first[0].nonce, nack="no")
    status = wires.status.view()[SECRET, "ROOTCA"]
    assert (status.accepted, status.refused, status.message) == (None, first[0].resources[0].version, "no")
    assert wires.events.nacks == [(SECRET, ("ROOTCA",), "no")]
    assert wires.events.acks == []


def test_s03_an_old_version_without_error_is_an_ack() -> None:
    wires = sds()
    first = wires.ask("SDS", "ROOTCA")
    wires.session.on_request(
        d.DiscoveryRequest(
            type_url=SECRET, resource_names=["ROOTCA"], response_nonce=first[0].nonce, version_info="older"
        )
    )
    assert wires.status.view()[SECRET, "ROOTCA"].accepted == first[0].resources[0].version


def test_s04_sotw_request_with_stale_nonce_is_ignored() -> None:
    wires = sds()
    first = wires.ask("SDS", "default")
    second = wires.publish(secrets=secrets(leaf="2"))
    assert shown(second) == [("SDS", ["default"])]
    assert wires.ask("SDS", "default", "ROOTCA", nonce=first[0].nonce) == []
    assert shown(wires.ask("SDS", "default", "ROOTCA", nonce=second[0].nonce)) == [("SDS", ["ROOTCA"])]


def test_s04_sotw_answer_to_the_older_response_still_counts_as_a_verdict() -> None:
    wires = sds()
    first = wires.ask("SDS", "default")
    wires.publish(secrets=secrets(leaf="2"))
    wires.ask("SDS", "default", nonce=first[0].nonce, nack="bad key")
    assert wires.status.view()[SECRET, "default"].refused == first[0].resources[0].version


def test_s04_sotw_client_that_names_its_last_good_response_is_heard_after_a_nack() -> None:
    """An Envoy with the unified mux asks with the nonce of the last response that it accepted."""
    wires = sds()
    first = wires.ask("SDS", "default")
    acked(wires, "SDS", first, "default")
    second = wires.publish(secrets=secrets(leaf="2"))
    wires.ask("SDS", "default", nonce=second[0].nonce, nack="bad key")
    assert shown(wires.ask("SDS", "default", "ROOTCA", nonce=first[0].nonce)) == [("SDS", ["ROOTCA"])]


def test_s04_delta_subscription_counts_although_the_nonce_is_stale() -> None:
    wires = sds(delta=True)
    first = wires.ask("SDS", "default")
    acked(wires, "SDS", first)
    wires.publish(secrets=secrets(leaf="2"))
    responses = wires.ask("SDS", nonce=first[0].nonce, subscribe=["ROOTCA"])
    assert responses == [], "one at a time: the new leaf is unanswered"
    assert "ROOTCA" in wires.session._subscriptions[SECRET].names


@BOTH
def test_s05_after_an_ack_only_changes_are_sent(delta: bool) -> None:
    wires = sds(delta=delta)
    drained(wires, "SDS", wires.ask("SDS", "default", "ROOTCA"), "default", "ROOTCA")
    assert wires.publish(secrets=secrets()) == []
    assert shown(wires.publish(secrets=secrets(leaf="2"))) == [("SDS", ["default"])]


@BOTH
def test_s05_newly_subscribed_name_is_sent_though_unchanged(delta: bool) -> None:
    wires = sds(delta=delta)
    first = wires.ask("SDS", "default")
    if delta:
        wires.ask("SDS", nonce=first[0].nonce, unsubscribe=["default"])
        assert shown(wires.ask("SDS", subscribe=["default"])) == [("SDS", ["default"])]
    else:
        wires.ask("SDS", "ROOTCA", nonce=first[0].nonce)
        nonce = wires.session._subscriptions[SECRET].nonce
        assert shown(wires.ask("SDS", "ROOTCA", "default", nonce=nonce)) == [("SDS", ["default"])]


def test_s05_delta_resubscription_means_send_again() -> None:
    wires = sds(delta=True)
    first = wires.ask("SDS", "default")
    acked(wires, "SDS", first)
    assert shown(wires.ask("SDS", subscribe=["default"])) == [("SDS", ["default"])]


@BOTH
def test_s06_name_that_does_not_exist_yet_is_remembered(delta: bool) -> None:
    wires = sds(delta=delta, secrets=ResourceSet())
    assert wires.ask("SDS", "default") == []
    assert shown(wires.publish(secrets=secrets())) == [("SDS", ["default"])]


def test_s06_sotw_later_list_replaces_the_earlier() -> None:
    wires = sds()
    first = wires.ask("SDS", "default")
    wires.ask("SDS", "ROOTCA", nonce=first[0].nonce)
    nonce = wires.session._subscriptions[SECRET].nonce
    wires.ask("SDS", "ROOTCA", nonce=nonce)
    assert wires.publish(secrets=secrets(leaf="2")) == []


@BOTH
def test_s07_sds_first_request_without_names_means_all(delta: bool) -> None:
    wires = sds(delta=delta)
    every = drained(wires, "SDS", wires.ask("SDS"))
    assert shown(every) == [("SDS", ["ROOTCA"]), ("SDS", ["default"])]


def test_s07_sotw_empty_list_after_names_means_none() -> None:
    wires = sds()
    first = wires.ask("SDS", "default")
    assert wires.ask("SDS", nonce=first[0].nonce) == []
    assert wires.publish(secrets=secrets(leaf="2", roots="2")) == []


@BOTH
def test_d10b_ads_secrets_have_no_wildcard(delta: bool) -> None:
    """An Envoy that has no secret to ask for is given none, on ADS also at first (D10b)."""
    wires = Wires(delta=delta, secrets=secrets(), config=ResourceSet())
    assert wires.ask("SDS") == []
    assert wires.publish(secrets=secrets(leaf="2")) == []


@pytest.mark.parametrize("short", ["EDS", "RDS", "ECDS"])
@BOTH
def test_d10b_only_roots_have_a_wildcard(short: str, delta: bool) -> None:
    wires = Wires(delta=delta, config=resources((short, "a", "1")))
    assert wires.ask(short) == []
    if not delta:
        assert wires.ask(short, "*") == []


@pytest.mark.parametrize("short", ["LDS", "CDS"])
@pytest.mark.parametrize("names", [(), ("*",)], ids=["empty", "star"])
@BOTH
def test_s07_roots_wildcard(short: str, names: tuple[str, ...], delta: bool) -> None:
    wires = Wires(delta=delta, config=resources((short, "a", "1"), (short, "b", "1")))
    assert shown(wires.ask(short, *names)) == [(short, ["a", "b"])]


def test_s07_delta_star_can_be_unsubscribed_and_names_stay() -> None:
    wires = Wires(delta=True, config=resources(("LDS", "a", "1"), ("LDS", "b", "1")))
    first = wires.ask("LDS", "*", "a")
    wires.ask("LDS", nonce=first[0].nonce, unsubscribe=["*"])
    changed = wires.publish(config=resources(("LDS", "a", "2"), ("LDS", "b", "2")))
    assert shown(changed) == [("LDS", ["a"])]


@BOTH
def test_s08_no_name_twice_in_a_response(delta: bool) -> None:
    wires = Wires(delta=delta, config=resources(("EDS", "a", "1")))
    assert shown(wires.ask("EDS", "a", "a")) == [("EDS", ["a"])]


@BOTH
def test_s09_empty_secret_response_is_never_sent(delta: bool) -> None:
    wires = sds(delta=delta, secrets=ResourceSet())
    assert wires.ask("SDS", "default") == []
    assert wires.publish(secrets=ResourceSet()) == []


@BOTH
def test_s09_withdrawn_secret_is_not_removed(delta: bool) -> None:
    wires = sds(delta=delta)
    drained(wires, "SDS", wires.ask("SDS", "default", "ROOTCA"), "default", "ROOTCA")
    assert wires.publish(identity=IdentitySnapshot(), secrets=ResourceSet([secret("ROOTCA")])) == []


@BOTH
def test_s10_alias_answers_bear_the_name_that_was_asked(delta: bool) -> None:
    wires = sds(delta=delta)
    every = drained(
        wires, "SDS", wires.ask("SDS", OWN, "spiffe://cluster.local"), OWN, "spiffe://cluster.local"
    )
    got = [(r.resources[0].name, secret_pb2.Secret.FromString(r.resources[0].body).name) for r in every]
    assert got == [("spiffe://cluster.local",) * 2, (OWN, OWN)]
    assert wires.events.unauthorised == []


@BOTH
def test_s12_versions_are_content_hashes(delta: bool) -> None:
    one, two = sds(delta=delta), sds(delta=delta)
    assert one.ask("SDS", "default")[0].version == two.ask("SDS", "default")[0].version
    other = sds(delta=delta, secrets=secrets(leaf="2")).ask("SDS", "default")
    again = sds(delta=delta).ask("SDS", "default")
    assert again[0].version != other[0].version


def test_s13_sotw_resends_on_a_new_stream_whatever_version_is_claimed() -> None:
    wires = sds()
    first = wires.ask("SDS", "default")
    acked(wires, "SDS", first, "default")
    session = wires.new_session()
    again = session.on_request(
        d.DiscoveryRequest(
            type_url=SECRET,
            resource_names=["default"],
            version_info=first[0].version,
            response_nonce=first[0].nonce,
        )
    )
    assert shown(again) == [("SDS", ["default"])]


@pytest.mark.parametrize("name", ["nonsense", "file-cert:/etc/passwd~/etc/shadow", "kubernetes://tls", "*"])
def test_s14_unknown_name_is_left_out_and_the_stream_lives(name: str) -> None:
    wires = Wires(secrets=secrets(), identity=IDENTITY)
    assert shown(wires.ask("SDS", name, "default")) == [("SDS", ["default"])]
    assert wires.events.unknown == [("demo/web", SECRET, name)]
    assert wires.events.unauthorised == []


@pytest.mark.parametrize("name", [OTHER, "spiffe://evil.test", "spiffe://evil.test/ns/demo/sa/web"])
@BOTH
def test_f71_foreign_identity_is_left_out_and_reported_once(name: str, delta: bool) -> None:
    wires = sds(delta=delta)
    first = wires.ask("SDS", name, "default")
    assert shown(first) == [("SDS", ["default"])]
    acked(wires, "SDS", first, name, "default")
    wires.publish(secrets=secrets(leaf="2"))
    assert wires.events.unauthorised == [("demo/web", SECRET, name)]


@BOTH
def test_f71_is_judged_only_when_the_own_identity_is_known(delta: bool) -> None:
    wires = sds(delta=delta, identity=IdentitySnapshot(), secrets=ResourceSet())
    assert wires.ask("SDS", OWN, OTHER) == []
    assert wires.events.unauthorised == []
    every = drained(wires, "SDS", wires.publish(identity=IDENTITY, secrets=secrets()), OWN, OTHER)
    assert shown(every) == [("SDS", [OWN])]
    assert wires.events.unauthorised == [("demo/web", SECRET, OTHER)]


@BOTH
def test_s15_second_leaf_waits_for_nothing_and_other_names_wait(delta: bool) -> None:
    wires = sds(delta=delta)
    first = wires.ask("SDS", "default")
    assert shown(first) == [("SDS", ["default"])]
    assert shown(wires.publish(secrets=secrets(leaf="2"))) == [("SDS", ["default"])], "superseded"
    third = wires.publish(secrets=secrets(leaf="2"))
    assert third == [], "the same content is on its way"


@BOTH
def test_s16_refused_bytes_are_not_sent_again(delta: bool) -> None:
    wires = sds(delta=delta)
    first = wires.ask("SDS", "default")
    names = () if delta else ("default",)
    assert wires.ask("SDS", *names, nonce=first[0].nonce, nack="bad key") == []
    assert wires.publish(secrets=secrets(leaf="1", roots="2")) == []
    assert shown(wires.publish(secrets=secrets(leaf="2"))) == [("SDS", ["default"])]


@BOTH
def test_f74_a_storm_of_nacks_changes_nothing(delta: bool) -> None:
    wires = sds(delta=delta)
    first = wires.ask("SDS", "default")
    names = () if delta else ("default",)
    for _ in range(500):
        assert wires.ask("SDS", *names, nonce=first[0].nonce, nack="bad key") == []
    assert len(wires.events.nacks) == 1


@BOTH
def test_s18_roots_before_the_leaf_and_the_leaf_after_their_answer(delta: bool) -> None:
    wires = sds(delta=delta)
    names = ("default", "ROOTCA")
    drained(wires, "SDS", wires.ask("SDS", *names), *names)
    first = wires.publish(secrets=secrets(leaf="2", roots="2"))
    assert shown(first) == [("SDS", ["ROOTCA"])]
    assert shown(acked(wires, "SDS", first, *names)) == [("SDS", ["default"])]


@pytest.mark.parametrize("order", [("default", "ROOTCA"), ("ROOTCA", "default")], ids=["leaf", "root"])
@BOTH
def test_s18_growing_subscription_in_any_order(order: tuple[str, str], delta: bool) -> None:
    """Envoy on ADS asks for one, then for both: only the new one is answered."""
    wires = Wires(delta=delta, secrets=secrets(), identity=IDENTITY)
    first = wires.ask("SDS", order[0])
    assert shown(first) == [("SDS", [order[0]])]
    listed = (order[1],) if delta else order
    assert shown(wires.ask("SDS", *listed, nonce=first[0].nonce)) == [("SDS", [order[1]])]


def test_s19_delta_reconnect_sends_only_what_differs() -> None:
    wires = sds(delta=True)
    versions = {name: r.version for name, r in wires.snapshot.secrets.of_type(SECRET).items()}
    responses = wires.ask("SDS", "default", "ROOTCA", versions={**versions, "ROOTCA": "older"})
    assert shown(responses) == [("SDS", ["ROOTCA"])]


def test_s19_delta_versions_of_names_not_asked_for_mean_nothing() -> None:
    wires = sds(delta=True)
    versions = {name: r.version for name, r in wires.snapshot.secrets.of_type(SECRET).items()}
    first = wires.ask("SDS", "default", versions=versions)
    assert first == []
    assert shown(wires.ask("SDS", subscribe=["ROOTCA"])) == [("SDS", ["ROOTCA"])]


def test_s19_delta_reconnect_of_roots_removes_what_is_gone_and_always_answers() -> None:
    config = resources(("LDS", "a", "1"))
    wires = Wires(delta=True, config=config)
    version = config.of_type(LISTENER)["a"].version
    response = wires.ask("LDS", versions={"a": version, "old": "1"})[0]
    assert (response.resources, response.removed) == ((), ("old",))
    wires.new_session()
    same = wires.ask("LDS", versions={"a": version})
    assert shown(same) == [("LDS", [])]


def test_s19_delta_never_lists_a_missing_secret_as_removed() -> None:
    wires = sds(delta=True, secrets=ResourceSet([secret("ROOTCA")]))
    responses = wires.ask("SDS", "default", "ROOTCA", versions={"default": "1"})
    assert [r.removed for r in responses] == [()]
