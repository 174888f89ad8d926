"""The rows of the policy corpus (policy.md g), and a row for every field of a rule: objects, calls, answers.

They are put to the reference evaluator and to a real Envoy, which must agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tests.fakes.policy_eval import Answer, Call, Token
from tests.fakes.policy_objects import ROOT, authz, peer_auth, request_auth, workload

BAR = "spiffe://cluster.local/ns/bar/sa/sleep"
FOO = "spiffe://cluster.local/ns/foo/sa/sleep"
I1, I2 = "https://i1.example", "https://i2.example"
JWKS1, JWKS2 = f"{I1}/jwks", f"{I2}/jwks"
T1 = Token(claims={"iss": I1, "sub": "alice", "groups": ["dev"], "scope": "read write"})
T1_BAD = dataclasses.replace(T1, good=False)
T2 = Token(claims={"iss": I2, "sub": "bob"})
RA1 = request_auth({"jwtRules": [{"issuer": I1, "jwksUri": JWKS1}]}, name="i1")
RA2 = request_auth({"jwtRules": [{"issuer": I2, "jwksUri": JWKS2}]}, name="i2")
OK, RESET, NO, WHO = Answer.OK, Answer.RESET, Answer.FORBIDDEN, Answer.UNAUTHENTICATED
STRICT = {"mtls": {"mode": "STRICT"}}
ECHO = workload(labels={"app": "tcp-echo"}, http=(), tcp=(9000, 9001))


def claims(**changed: object) -> Token:
    return Token(claims={"iss": I1, "sub": "alice"} | changed)


def without_sub() -> Token:
    return Token(claims={"iss": I1})


def allow(**spec: object) -> dict[str, object]:
    return authz({"rules": [spec]}, name="allow")


def deny(**spec: object) -> dict[str, object]:
    return authz({"action": "DENY", "rules": [spec]}, name="deny")


def who(**source: object) -> dict[str, object]:
    return {"from": [{"source": source}]}


def what(**operation: object) -> dict[str, object]:
    return {"to": [{"operation": operation}]}


def when(key: str, *values: str) -> dict[str, object]:
    return {"when": [{"key": key, "values": list(values)}]}


MTLS, PLAIN = Call(peer=BAR), Call()

ROWS = [
    ("P-01", [], [(PLAIN, OK), (MTLS, OK)]),
    ("P-02", [peer_auth(STRICT)], [(PLAIN, RESET), (MTLS, OK)]),
    (
        "P-03",
        [peer_auth(STRICT, namespace=ROOT), peer_auth({"mtls": {"mode": "DISABLE"}})],
        [(PLAIN, OK)],
    ),
    (
        "P-04",
        [
            peer_auth(STRICT),
            peer_auth(
                {
                    "selector": {"matchLabels": {"app": "httpbin"}},
                    "portLevelMtls": {"8080": {"mode": "DISABLE"}},
                },
                name="w",
            ),
        ],
        [(PLAIN, OK), (Call(port=9000), RESET)],
    ),
    (
        "P-05",
        [
            peer_auth(STRICT),
            peer_auth(
                {
                    "selector": {"matchLabels": {"app": "httpbin"}},
                    "portLevelMtls": {"8000": {"mode": "DISABLE"}},
                },
                name="w",
            ),
        ],
        [(PLAIN, RESET), (MTLS, OK)],
    ),
    ("P-06", [peer_auth(STRICT, namespace=ROOT), peer_auth({})], [(PLAIN, RESET), (MTLS, OK)]),
    (
        "P-12",
        [peer_auth(STRICT)],
        [(Call(port=9002, http=False), RESET), (Call(port=9002, http=False, peer=BAR), OK)],
    ),
    ("P-21", [RA1], [(PLAIN, OK), (Call(token=T1), OK), (Call(token=T1_BAD), WHO)]),
    ("P-22", [RA1], [(Call(token=T2), WHO), (Call(token=T1), OK)]),
    (
        "P-23",
        [request_auth({"jwtRules": [{"issuer": I1, "jwksUri": JWKS1, "audiences": ["a"]}]})],
        [
            (Call(token=claims(aud="b")), NO),
            (Call(token=claims()), NO),
            (Call(token=claims(aud=["x", "a"])), OK),
        ],
    ),
    ("P-24", [RA1, RA2], [(Call(token=T1), OK), (Call(token=T2), OK), (PLAIN, OK)]),
    (
        "P-30",
        [RA1, allow(**who(requestPrincipals=["*"]))],
        [(PLAIN, NO), (Call(token=T1), OK), (Call(token=without_sub()), NO)],
    ),
    (
        "P-31",
        [RA1, allow(**who(requestPrincipals=[f"{I1}/alice"]))],
        [(Call(token=T1), OK), (Call(token=claims(sub="bob")), NO)],
    ),
    (
        "P-35",
        [RA1, allow(**when("request.auth.claims[scope]", "write"))],
        [(Call(token=T1), OK), (Call(token=claims(scope="read")), NO)],
    ),
    (
        "P-36",
        [RA1, allow(**when("request.auth.claims[nested][role]", "admin"))],
        [
            (Call(token=claims(nested={"role": ["admin", "x"]})), OK),
            (Call(token=claims(nested={"role": "user"})), NO),
        ],
    ),
    ("P-41", [authz({})], [(MTLS, NO)]),
    (
        "P-42",
        [allow(**who(principals=["cluster.local/ns/bar/sa/sleep"]))],
        [(MTLS, OK), (Call(peer=FOO), NO), (PLAIN, NO)],
    ),
    (
        "P-43",
        [allow(**who(namespaces=["bar"]), **what(methods=["GET"], paths=["/info*"]))],
        [
            (Call(peer=BAR, path="/info/1"), OK),
            (Call(peer=BAR, path="/info", method="POST"), NO),
            (Call(peer=BAR, path="/x"), NO),
        ],
    ),
    (
        "P-44",
        [deny(**what(paths=["/admin"])), allow(**what(paths=["/*"]))],
        [(Call(path="/admin"), NO), (Call(path="/ok"), OK)],
    ),
    (
        "P-46",
        [deny(**what(hosts=["api.foo.example"]))],
        [
            (Call(host="API.foo.example"), NO),
            (Call(host="api.foo.example:80"), NO),
            (Call(host="api.foo.example.org"), OK),
        ],
    ),
    ("P-47", [deny(**who(notPrincipals=["*"]))], [(PLAIN, NO), (MTLS, OK)]),
    ("P-48", [allow(**who(notNamespaces=["bar"]))], [(MTLS, NO), (PLAIN, OK)]),
    (
        "P-49",
        [allow(**when("request.headers[X-R]", "a"))],
        [
            (Call(headers={"x-r": ("a",)}), OK),
            (Call(headers={"x-r": ("b",)}), NO),
            (PLAIN, NO),
            (Call(headers={"x-r": ("b", "a")}), OK),
        ],
    ),
    (
        "P-50",
        [allow(**what(paths=["/foo/{*}"]))],
        [(Call(path="/foo/a"), OK), (Call(path="/foo/a/b"), NO), (Call(path="/foo/"), NO)],
    ),
    (
        "P-51",
        [
            authz({"rules": [who(namespaces=["foo"])]}, namespace=ROOT),
            authz({"rules": [who(namespaces=["bar"])]}),
        ],
        [(MTLS, OK), (Call(peer=FOO), OK), (PLAIN, NO)],
    ),
    (
        "P-52",
        [allow(**what(ports=["9000"]))],
        [(Call(port=port, http=False), answer) for port, answer in ((9000, OK), (9001, NO), (9002, NO))],
    ),
    (
        "P-53",
        [allow(**what(methods=["GET"], ports=["9000"]))],
        [(Call(port=9000, http=False), NO), (Call(port=9000), OK)],
    ),
    (
        "P-54",
        [deny(**who(namespaces=["bar"]), **what(ports=["9001"]))],
        [
            (Call(port=9001, http=False, peer=BAR), NO),
            (Call(port=9000, http=False, peer=BAR), OK),
            (Call(port=9001, http=False, peer=FOO), OK),
        ],
    ),
    (
        "P-55",
        [
            authz(
                {"action": "DENY", "rules": [what(paths=["/x"])]},
                annotations={"istio.io/dry-run": "true"},
            )
        ],
        [(Call(path="/x"), OK)],
    ),
    (
        "CVE-2026-39350",
        [allow(**who(serviceAccounts=["bar/a.b"]))],
        [
            (Call(peer="spiffe://cluster.local/ns/bar/sa/a.b"), OK),
            (Call(peer="spiffe://cluster.local/ns/bar/sa/axb"), NO),
        ],
    ),
    (
        "CVE-2020-16844",
        [deny(**who(principals=["*/sa/sleep"]))],
        [(Call(peer=BAR, http=False), NO), (Call(peer="spiffe://cluster.local/ns/bar/sa/x", http=False), OK)],
    ),
    (
        "DENY paths blocks TCP (istio#24845)",
        [deny(**what(paths=["/admin"]))],
        [(Call(port=9000, http=False), NO), (PLAIN, OK)],
    ),
]


# --- every field of a rule, HTTP and TCP (policy b.3) ----------------------------------------------------
#
# Each field in ALLOW and in DENY: what the one lets through is what the other refuses. The last item says
# what holds on a bare connection: True the same; False the field is of HTTP only, so that either action
# closes everything; None it is not asked there.

SLEEP = "cluster.local/ns/bar/sa/sleep"
EVIL = "spiffe://old.example/ns/bar/sa/sleep"
HERE, THERE = (
    Call(source_ip="127.1.2.9", remote_ip="127.1.2.9"),
    Call(source_ip="127.1.3.9", remote_ip="127.1.3.9"),
)
FORWARDED = Call(remote_ip="10.9.1.1")
IP = Call(destination_ip="127.0.0.1")


def over(peer: str | None, **changed: Any) -> Call:
    return Call(peer=peer, **changed)


def when_not(key: str, *values: str) -> dict[str, object]:
    return {"when": [{"key": key, "notValues": list(values)}]}


BOTH_WAYS = (
    # name, positive, negative, matching calls, other calls, on TCP too?
    ("principals", who(principals=[SLEEP]), who(notPrincipals=[SLEEP]),
     (MTLS,), (over(FOO), PLAIN), True),
    ("principals-any", who(principals=["*"]), who(notPrincipals=["*"]), (MTLS, over(FOO)), (PLAIN,), True),
    ("principals-prefix", who(principals=[SLEEP[:-3] + "*"]), who(notPrincipals=[SLEEP[:-3] + "*"]),
     (MTLS,), (over(FOO), PLAIN), True),
    ("principals-suffix", who(principals=["*/sa/sleep"]), who(notPrincipals=["*/sa/sleep"]),
     (MTLS, over(FOO)), (over("spiffe://cluster.local/ns/bar/sa/x"), PLAIN), True),
    ("namespaces", who(namespaces=["bar"]), who(notNamespaces=["bar"]), (MTLS,), (over(FOO), PLAIN), True),
    ("serviceAccounts", who(serviceAccounts=["bar/sleep"]), who(notServiceAccounts=["bar/sleep"]),
     (MTLS,), (over(FOO), PLAIN), True),
    ("serviceAccounts-own-namespace", who(serviceAccounts=["sleep"]), who(notServiceAccounts=["sleep"]),
     (over(FOO),), (MTLS, PLAIN), True),
    ("trustDomains", who(trustDomains=["old.example"]), who(notTrustDomains=["old.example"]),
     (over(EVIL),), (MTLS, PLAIN), True),
    ("ipBlocks", who(ipBlocks=["127.1.2.0/24"]), who(notIpBlocks=["127.1.2.0/24"]), (HERE,), (THERE,), True),
    ("remoteIpBlocks", who(remoteIpBlocks=["10.9.0.0/16"]), who(notRemoteIpBlocks=["10.9.0.0/16"]),
     (FORWARDED,), (HERE,), None),
    ("remoteIpBlocks-direct", who(remoteIpBlocks=["127.1.2.0/24"]), who(notRemoteIpBlocks=["127.1.2.0/24"]),
     (HERE,), (THERE,), True),
    ("requestPrincipals", who(requestPrincipals=[f"{I1}/alice"]), who(notRequestPrincipals=[f"{I1}/alice"]),
     (Call(token=T1),), (Call(token=claims(sub="bob")), PLAIN), False),
    ("requestPrincipals-any", who(requestPrincipals=["*"]), who(notRequestPrincipals=["*"]),
     (Call(token=T1),), (Call(token=without_sub()), PLAIN), False),
    ("hosts", what(hosts=["api.example"]), what(notHosts=["api.example"]),
     (Call(host="API.example:80"),), (Call(host="api.example.org"),), False),
    ("ports", what(ports=["8080"]), what(notPorts=["8080"]), (PLAIN,), (Call(port=8081),), True),
    ("methods", what(methods=["GET"]), what(notMethods=["GET"]), (PLAIN,), (Call(method="POST"),), False),
    ("paths", what(paths=["/a*"]), what(notPaths=["/a*"]), (Call(path="/a/b"),), (Call(path="/b"),), False),
    ("paths-template", what(paths=["/a/{*}/c"]), what(notPaths=["/a/{*}/c"]),
     (Call(path="/a/b/c"),), (Call(path="/a/b/d"),), False),
)  # fmt: skip

CONDITIONS = (
    ("source.principal", ["cluster.local/ns/bar/sa/sleep"], (MTLS,), (over(FOO), PLAIN), True),
    ("source.namespace", ["bar"], (MTLS,), (over(FOO), PLAIN), True),
    ("source.serviceAccount", ["bar/sleep"], (MTLS,), (over(FOO), PLAIN), True),
    ("source.trustDomain", ["old.example"], (over(EVIL),), (MTLS, PLAIN), True),
    ("source.ip", ["127.1.2.0/24"], (HERE,), (THERE,), True),
    ("remote.ip", ["10.9.0.0/16"], (FORWARDED,), (HERE,), None),
    ("destination.ip", ["127.0.0.0/8"], (IP,), (), True),
    ("destination.port", ["8080"], (PLAIN,), (Call(port=8081),), True),
    ("connection.sni", ["*.example"], (over(BAR, sni="a.example"),), (over(BAR, sni="a.test"), PLAIN), True),
    ("request.headers[x-r]", ["a"],
     (Call(headers={"x-r": ("a",)}),), (Call(headers={"x-r": ("b",)}), PLAIN), False),
    ("request.auth.principal", [f"{I1}/alice"],
     (Call(token=T1),), (Call(token=claims(sub="bob")), PLAIN), False),
    ("request.auth.audiences", ["a"],
     (Call(token=claims(aud=["x", "a"])),), (Call(token=claims(aud="b")), PLAIN), False),
    ("request.auth.presenter", ["app"],
     (Call(token=claims(azp="app")),), (Call(token=claims(azp="x")), PLAIN), False),
    ("request.auth.claims[groups]", ["dev"],
     (Call(token=T1),), (Call(token=claims(groups=["ops"])), PLAIN), False),
    ("experimental.envoy.filters.network.mysql_proxy[db]", ["[t]"], (), (PLAIN, MTLS), True),
)  # fmt: skip


def _rows() -> Iterator[tuple[str, list[dict[str, object]], list[tuple[Call, Answer]]]]:
    both = [
        *BOTH_WAYS,
        *(
            (key, when(key, *v), when_not(key, *v), match, other, tcp)
            for key, v, match, other, tcp in CONDITIONS
        ),
    ]
    for name, positive, negative, match, other, tcp in both:
        for label, rule, hits, misses in (("", positive, match, other), ("not-", negative, other, match)):
            answers = [(call, True) for call in hits] + [(call, False) for call in misses]
            for action, spec in (("allow", allow(**rule)), ("deny", deny(**rule))):
                yes, no = (OK, NO) if action == "allow" else (NO, OK)
                objects = [RA1, spec]
                yield (
                    f"{action}-{label}{name}",
                    objects,
                    [(call, yes if hit else no) for call, hit in answers],
                )
                if tcp is None:
                    continue
                bare = [(dataclasses.replace(call, http=False, token=None), hit) for call, hit in answers]
                yield (
                    f"tcp-{action}-{label}{name}",
                    objects,
                    [(call, (yes if hit else no) if tcp else NO) for call, hit in bare],
                )


FIELD_ROWS = tuple(_rows())
