"""Which peers a TLS handshake can demand on a TCP port (design D9a)."""

from __future__ import annotations

import pytest

from mesh.policy.effective import RuleSets
from mesh.policy.resolve import identity_only_peers
from mesh.spiffe import TrustDomain
from tests.fakes.policy_objects import authz, effective

LOCAL = (TrustDomain("cluster.local"),)
TWO = (*LOCAL, TrustDomain("old.example"))
A = "spiffe://cluster.local/ns/a/sa/x"
B = "spiffe://cluster.local/ns/b/sa/x"


def peers(
    *specs: dict[str, object], port: int = 9000, domains: tuple[TrustDomain, ...] = LOCAL
) -> list[str] | None:
    tcp = effective(*(authz(spec, name=f"p{index}") for index, spec in enumerate(specs))).authz.tcp
    found = identity_only_peers(tcp, port, domains)
    return None if found is None else [f"{match.kind.value} {match.value}" for match in found]


def allow(*sources: dict[str, object], action: str = "ALLOW", **rule: object) -> dict[str, object]:
    return {"action": action, "rules": [{"from": [{"source": s} for s in sources], **rule}]}


def on(*ports: str) -> list[dict[str, object]]:
    return [{"operation": {"ports": list(ports)}}]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"principals": ["cluster.local/ns/a/sa/x"]}, [f"exact {A}"]),
        ({"serviceAccounts": ["a/x"]}, [f"exact {A}"]),
        ({"principals": ["*/ns/a/sa/x"]}, [f"exact {A}"]),
        ({"namespaces": ["a"]}, ["prefix spiffe://cluster.local/ns/a/"]),
        ({"trustDomains": ["cluster.local", "foreign"]}, ["prefix spiffe://cluster.local/"]),
        ({"principals": ["*"]}, ["prefix spiffe://cluster.local/"]),
        ({"principals": ["cluster.local/ns/a/*"]}, ["prefix spiffe://cluster.local/ns/a/"]),
        ({"principals": ["clus*"]}, ["prefix spiffe://cluster.local/"]),
        ({"principals": ["foreign/ns/a/sa/x", "foreign/*"]}, []),
        ({"principals": ["*/sa/x"]}, None),
        ({"namespaces": ["a*"]}, None),
        ({"notNamespaces": ["a"]}, None),
        ({"namespaces": ["a"], "ipBlocks": ["10.0.0.0/8"]}, None),
        ({"ipBlocks": ["10.0.0.0/8"]}, None),
    ],
)
def test_identities(source: dict[str, object], expected: list[str] | None) -> None:
    assert peers(allow(source)) == expected


def test_every_trust_domain_gets_a_matcher() -> None:
    assert peers(allow({"serviceAccounts": ["a/x"]}), domains=TWO) == [
        f"exact {A}",
        "exact spiffe://old.example/ns/a/sa/x",
    ]


def test_no_allow_policy_is_no_restriction_and_nothing_allowed_is_nobody() -> None:
    assert peers() is None
    assert identity_only_peers(RuleSets(allow=()), 9000, LOCAL) == ()
    assert peers({}) == []
    assert peers(allow({"namespaces": ["a"]}, to=on("9001"))) == []


def test_rules_of_other_ports_do_not_count() -> None:
    assert peers(
        allow({"serviceAccounts": ["a/x"]}, to=on("9000")), allow({"ipBlocks": ["::/0"]}, to=on("1"))
    ) == [f"exact {A}"]


def test_a_rule_that_asks_for_more_than_the_port_is_not_expressible() -> None:
    assert (
        peers(allow({"serviceAccounts": ["a/x"]}, when=[{"key": "connection.sni", "values": ["s"]}])) is None
    )


def test_deny_by_identity_is_subtracted_and_any_other_deny_is_not_expressible() -> None:
    both = allow({"serviceAccounts": ["a/x", "b/x"]})
    assert peers(both, allow({"namespaces": ["a"]}, action="DENY")) == [f"exact {B}"]
    assert peers(both, allow({"notNamespaces": ["a"]}, action="DENY")) == [f"exact {A}"]
    assert peers(both, allow({"principals": ["*/sa/x"]}, action="DENY")) == []
    assert peers(both, allow({"principals": ["cluster.local/ns/a/*"]}, action="DENY")) == [f"exact {B}"]
    assert peers(both, allow({"trustDomains": ["cluster.local"]}, action="DENY")) == []
    assert peers(both, allow({"serviceAccounts": ["a/x"]}, action="DENY")) == [f"exact {B}"]
    assert peers(both, allow({"principals": ["*"]}, action="DENY")) == []
    assert peers(both, allow({"ipBlocks": ["10.0.0.0/8"]}, action="DENY")) is None
    assert peers(both, allow({"namespaces": ["a"]}, action="DENY", to=on("1"))) == [
        f"exact {A}",
        f"exact {B}",
    ]
    sni = [{"key": "connection.sni", "values": ["s"]}]
    assert peers(both, allow({"namespaces": ["a"]}, action="DENY", when=sni)) is None
    assert peers(allow({"namespaces": ["a"]}), allow({"namespaces": ["b"]}, action="DENY")) is None
    assert peers({}, allow({"namespaces": ["b"]}, action="DENY")) == []
