"""OpenShift namespaces: the proxy's user comes from the range of the namespace, and clashes are told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from injector.core.openshift import UID_RANGE, proxy_user
from injector.namespaces import read_namespace
from tests.fakes.injector_pods import a_pod, container, find, injected, injecting, status

RANGE = {UID_RANGE: "1000650000/10000"}
LAST = 1000659999


@pytest.mark.parametrize(
    ("text", "uid"),
    [("1000650000/10000", LAST), ("1000650000-1000659999", LAST), (" 1000/1 ", 1000), ("5-5", 5)],
)
def test_the_last_user_of_the_range(text: str, uid: int) -> None:
    assert proxy_user({UID_RANGE: text}) == uid


def test_a_namespace_without_a_range() -> None:
    assert proxy_user({"openshift.io/sa.scc.mcs": "s0:c26,c5"}) is None


@pytest.mark.parametrize(
    "text", ["", "x", "1000", "1000/", "1000/0", "0/5", "9-8", "1/-1", "1/99999999999", "2147483647/2", "1,2"]
)
def test_a_range_that_is_none_denies(text: str) -> None:
    """A guess would be refused by the constraints later, with a message about us."""
    with pytest.raises(ValueError, match="START/LENGTH or START-END"):
        proxy_user({UID_RANGE: text})
    result = injecting(a_pod(), namespace_annotations={UID_RANGE: text})
    assert result.decision.reason == "invalid_option"
    assert UID_RANGE in result.problems[0]


def test_user_group_and_capture_rules_agree() -> None:
    pod = injected(a_pod(), namespace_annotations=RANGE)
    context = find(pod, "istio-proxy")["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (LAST, LAST)
    args = find(pod, "istio-init")["args"]
    assert json.loads(args[args.index("--config") + 1])["proxy_uid"] == LAST


def test_settings_are_the_same_in_every_namespace() -> None:
    """Else each pod of such a namespace would look as if it were injected with old settings."""
    assert (
        status(injected(a_pod(), namespace_annotations=RANGE))["digest"]
        == status(injected(a_pod()))["digest"]
    )


def test_what_the_constraints_stamp_on_applications_is_no_clash() -> None:
    """Admission gives every container the first user of the range, before the webhook is asked."""
    stamped = container(securityContext={"runAsUser": 1000650000})
    pod = injected(a_pod(stamped), namespace_annotations=RANGE)
    again = injecting(pod, namespace_annotations=RANGE)
    assert again.decision.reason == "up_to_date"


@pytest.mark.parametrize(
    ("pod", "code"),
    [
        (a_pod(container(securityContext={"runAsUser": LAST})), "uid_clash"),
        (a_pod(securityContext={"runAsUser": LAST}), "uid_clash"),
        (a_pod(container(securityContext={"runAsGroup": LAST})), "gid_clash"),
    ],
)
def test_an_application_with_the_proxys_user_is_denied(pod: dict[str, Any], code: str) -> None:
    result = injecting(pod, namespace_annotations=RANGE)
    assert (result.decision.outcome.value, result.decision.reason) == ("deny", code)
    assert f"is {LAST}, the proxy's" in result.decision.message
    assert result.warnings


def test_the_usual_user_is_free_where_the_proxy_has_another() -> None:
    assert injected(a_pod(container(securityContext={"runAsUser": 1337})), namespace_annotations=RANGE)


def test_the_webhook_keeps_the_annotation_and_no_other_of_openshift() -> None:
    found = read_namespace({"metadata": {"annotations": {**RANGE, "openshift.io/description": "x" * 1000}}})
    assert found.annotations == RANGE
