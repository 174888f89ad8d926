"""The objects of `meshctl check --traffic`: what they may do, whom they touch, and what the rules mean."""

from __future__ import annotations

from typing import Any

import jwt
import pytest

from injector.core.decision import Outcome, decide
from injector.core.policies import judge
from meshctl.traffic.plan import (
    CLIENTS,
    INJECTED,
    NAME,
    NAME_LABEL,
    Made,
    Plan,
    Role,
    before_pods,
    client,
    namespace_of,
    server,
)
from meshctl.traffic.token import LIFETIME, issue
from tests.fakes.clock import EPOCH
from tests.fakes.meshctl_cluster import settings_of_cluster
from tests.fakes.meshctl_traffic import plan, requests_of, with_sidecar


def pods(made: Plan) -> dict[Role, dict[str, Any]]:
    found = {Role.SERVER: server(made).body}
    return found | {role: client(made, role).body for role in CLIENTS}


def everything(made: Plan) -> list[Made]:
    return [*before_pods(made), server(made), *(client(made, role) for role in CLIENTS)]


@pytest.mark.parametrize("role", Role)
def test_pods_are_restricted_and_have_no_token_of_the_api_server(role: Role) -> None:
    spec = pods(plan())[role]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "volumes"} & spec.keys()
    accounts = [made.body for made in before_pods(plan()) if made.body["kind"] == "ServiceAccount"]
    assert all(item["automountServiceAccountToken"] is False for item in accounts)
    assert spec["serviceAccountName"] in {item["metadata"]["name"] for item in accounts}


@pytest.mark.parametrize("role", Role)
def test_who_gets_a_sidecar(role: Role) -> None:
    labels = namespace_of(plan()).body["metadata"]["labels"]
    found = decide(pods(plan())[role], plan().namespace, labels, settings_of_cluster().selection)
    assert (found.outcome is Outcome.INJECT) is (role in INJECTED), found


def test_a_sidecar_of_a_client_ends_with_it() -> None:
    containers = with_sidecar(pods(plan())[Role.ALLOWED])["spec"]["containers"]
    (proxy,) = [item for item in containers if item["name"] == "istio-proxy"]
    assert "injector.until_finished" in proxy["command"]


def test_the_namespace_asks_by_the_label_that_is_served() -> None:
    labels = namespace_of(plan()).body["metadata"]["labels"]
    assert labels["istio-injection"] == "enabled"
    assert "istio.io/rev" not in labels
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    assert labels[NAME_LABEL] == NAME
    labels = namespace_of(plan(revision="canary")).body["metadata"]["labels"]
    assert labels["istio.io/rev"] == "canary"
    assert "istio-injection" not in labels


def test_everything_is_named_and_chosen_by_the_run() -> None:
    """It may be a namespace where others work: no rule reaches them."""
    for made in everything(plan()):
        assert "a1b2c3" in made.body["metadata"]["name"]
        assert made.body["metadata"]["namespace"] == plan().namespace
        assert made.body["metadata"]["labels"]["app.kubernetes.io/instance"] == "a1b2c3"
        spec = made.body.get("spec") or {}
        if made.body["kind"] == "Service":
            assert spec["selector"]["app.kubernetes.io/instance"] == "a1b2c3"
        elif made.body["kind"].endswith(("Policy", "Authentication")):
            assert spec["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "a1b2c3"
            assert (
                spec["selector"]["matchLabels"].items() <= server(plan()).body["metadata"]["labels"].items()
            )


def test_the_policies_have_no_error() -> None:
    kinds = []
    for made in before_pods(plan()):
        if made.body["kind"].endswith(("Policy", "Authentication")):
            kinds.append(made.body["kind"])
            assert not judge(made.body, made.body["kind"]).errors
            assert made.path.endswith("ies" if made.body["kind"].endswith("Policy") else "s")
    assert kinds == ["PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"]


def test_what_is_asked() -> None:
    """Three kinds of refusal, each told by more than its status, and two answers of this run's own server."""
    made = plan()
    found = {role: [(a.name, a.status, a.text, a.error) for a in made.asks(role)] for role in Role}
    denied = (403, "RBAC: access denied", "")
    assert found == {
        Role.SERVER: [],
        Role.ALLOWED: [
            ("identity", 200, "a1b2c3", ""),
            ("no token", *denied),
            ("garbage token", 401, "Jwt ", ""),
            ("good token", 200, "a1b2c3", ""),
        ],
        Role.OTHER: [("other identity", *denied)],
        Role.OUTSIDE: [("plaintext", 0, "", "closed")],
    }
    assert all(requests_of(pods(made)[role]) == made.asks(role) for role in CLIENTS)


def test_the_image_is_pulled_as_the_control_plane_pulls_it() -> None:
    made = plan(pull_policy="Never", pull_secrets=("a", "b"), life_seconds=180)
    for pod in pods(made).values():
        assert pod["spec"]["containers"][0]["imagePullPolicy"] == "Never"
        assert pod["spec"]["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
        assert pod["spec"]["activeDeadlineSeconds"] == 180
    plain = pods(plan())[Role.SERVER]["spec"]
    assert not {"imagePullSecrets", "activeDeadlineSeconds"} & plain.keys()
    assert "imagePullPolicy" not in plain["containers"][0]


def test_the_token_is_good_for_the_key_set_and_no_private_key_is_in_it() -> None:
    first, second = issue("a", EPOCH), issue("a", EPOCH)
    (key,) = jwt.PyJWKSet.from_json(first.jwks).keys
    claims = jwt.decode(first.token, key, algorithms=["ES256"], options={"verify_exp": False})
    assert claims == {"iss": first.issuer, "sub": "meshctl", "exp": int((EPOCH + LIFETIME).timestamp())}
    assert '"d"' not in first.jwks
    assert first.jwks != second.jwks
