"""Publish calls as values: what is read, what is refused and why (rows F-78, F-79, F-81, F-82)."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Category
from nodeagent.core.volume import (
    VolumeCode,
    VolumeError,
    check_volume_id,
    parse_publish,
    target_parts,
    token_of,
)
from tests.fakes.csi_kubelet import CSI_TOKENS, CSI_UID, csi_context, csi_request, csi_target, csi_tokens

PODS = "/var/lib/kubelet/pods"
TARGET = csi_target(PODS)
GOOD = csi_request(TARGET)


def test_a_publish_call_is_read() -> None:
    found = parse_publish(GOOD, pods=PODS)
    assert (found.namespace, found.pod, found.service_account) == ("demo", "web", "web")
    assert (found.pod_uid, found.name, found.target, found.uid) == (CSI_UID, "gatehouse", TARGET, CSI_UID)
    assert token_of(GOOD, "istio-ca") == "tok-1"


def test_a_second_volume_of_a_pod_is_another_workload() -> None:
    request = csi_request(csi_target(PODS, name="own"))
    assert parse_publish(request, pods=PODS).uid == f"{CSI_UID}/own"


def test_f78_keys_of_the_pods_author_are_not_read() -> None:
    forged = csi_context() | {
        "serviceAccount": "admin",
        "serviceAccount.name": "admin",
        "pod.uid": "x",
        "sa": "y",
    }
    assert parse_publish(replace(GOOD, context=forged), pods=PODS) == parse_publish(GOOD, pods=PODS)


def test_f81_a_pod_in_the_hosts_network_is_like_any_other() -> None:
    context = csi_context() | {"csi.storage.k8s.io/hostNetwork": "true"}
    assert parse_publish(replace(GOOD, context=context), pods=PODS).service_account == "web"


BAD = [
    ("id-empty", {"volume_id": ""}, VolumeCode.VOLUME_ID, "1 to 128"),
    ("id-long", {"volume_id": "x" * 129}, VolumeCode.VOLUME_ID, "1 to 128"),
    ("id-control", {"volume_id": "a\nb"}, VolumeCode.VOLUME_ID, "printable"),
    ("block", {"is_mount": False}, VolumeCode.CAPABILITY, "no block devices"),
    ("writable", {"readonly": False}, VolumeCode.WRITABLE, "readOnly: true"),
    (
        "f79-outside",
        {"target_path": "/etc/cron.d/x"},
        VolumeCode.TARGET,
        "must be below /var/lib/kubelet/pods",
    ),
    ("f79-dots", {"target_path": f"{PODS}/../../../../etc/mount"}, VolumeCode.TARGET, "without '..'"),
    ("f79-dot", {"target_path": f"{PODS}/./{CSI_UID}"}, VolumeCode.TARGET, "without '..'"),
    ("f79-slashes", {"target_path": TARGET.replace("/volumes", "//volumes")}, VolumeCode.TARGET, "double"),
    ("f79-relative", {"target_path": TARGET[1:]}, VolumeCode.TARGET, "absolute"),
    ("f79-trailing", {"target_path": f"{TARGET}/"}, VolumeCode.TARGET, "double slashes"),
    ("f79-pods-itself", {"target_path": PODS}, VolumeCode.TARGET, "below"),
    ("f79-sibling", {"target_path": f"{PODS}-evil/x/mount"}, VolumeCode.TARGET, "below"),
    ("f79-empty", {"target_path": ""}, VolumeCode.TARGET, "a path"),
    ("f79-nul", {"target_path": f"{TARGET}\0"}, VolumeCode.TARGET, "a path"),
    ("f79-long", {"target_path": f"{PODS}/{'x' * 5000}"}, VolumeCode.TARGET, "4096"),
    ("f79-other-pod", {"target_path": csi_target(PODS, "other-uid")}, VolumeCode.TARGET, f"of pod {CSI_UID}"),
    ("f79-depth", {"target_path": f"{TARGET}/deeper"}, VolumeCode.TARGET, "volumes/kubernetes.io~csi"),
    ("f79-plugin", {"target_path": TARGET.replace("~csi", "~empty-dir")}, VolumeCode.TARGET, "io~csi"),
    ("f79-leaf", {"target_path": TARGET.replace("/mount", "/other")}, VolumeCode.TARGET, "/mount"),
    ("f79-name", {"target_path": csi_target(PODS, name="UPPER")}, VolumeCode.TARGET, "DNS label"),
    ("persistent", {"context": csi_context(ephemeral="")}, VolumeCode.NOT_EPHEMERAL, "PersistentVolume"),
    ("ephemeral-false", {"context": csi_context(ephemeral="false")}, VolumeCode.NOT_EPHEMERAL, "inline"),
    ("no-uid", {"context": csi_context(pod__uid="")}, VolumeCode.POD_INFO, "podInfoOnMount"),
    ("no-name", {"context": csi_context(pod__name="")}, VolumeCode.POD_INFO, "pod.name is missing"),
    ("no-account", {"context": csi_context(serviceAccount__name="")}, VolumeCode.POD_INFO, "podInfoOnMount"),
    (
        "bad-namespace",
        {"context": csi_context(pod__namespace="a/../b")},
        VolumeCode.POD_INFO,
        "pod.namespace",
    ),
    ("bad-account", {"context": csi_context(serviceAccount__name="a/b")}, VolumeCode.POD_INFO, "not a valid"),
    ("nothing", {"context": {}}, VolumeCode.NOT_EPHEMERAL, "inline"),
]


@pytest.mark.parametrize(("change", "code", "message"), [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_refusals(change: dict[str, object], code: VolumeCode, message: str) -> None:
    with pytest.raises(VolumeError) as caught:
        parse_publish(replace(GOOD, **change), pods=PODS)  # type: ignore[arg-type]  # rows of a table
    assert caught.value.code is code
    assert message in caught.value.public
    assert "tok-1" not in caught.value.public + caught.value.private


TOKENS = [
    ("f82-none", "", VolumeCode.NO_TOKEN, "static pods"),
    ("f82-other-audience", csi_tokens(audience="vault"), VolumeCode.NO_TOKEN, "tokenRequests"),
    ("not-json", "{", VolumeCode.BAD_TOKEN, "JSON"),
    ("not-a-map", "[]", VolumeCode.BAD_TOKEN, "JSON object"),
    ("deep", "[" * 100_000, VolumeCode.BAD_TOKEN, "JSON"),
    ("huge", "x" * 300_000, VolumeCode.BAD_TOKEN, "bytes"),
    ("entry-text", json.dumps({"istio-ca": "tok"}), VolumeCode.NO_TOKEN, "no token for the audience"),
    ("token-number", json.dumps({"istio-ca": {"token": 1}}), VolumeCode.BAD_TOKEN, "one token"),
    ("token-empty", csi_tokens(""), VolumeCode.BAD_TOKEN, "one token"),
    ("token-newline", csi_tokens("a\nb"), VolumeCode.BAD_TOKEN, "printable"),
    ("token-long", csi_tokens("x" * 17_000), VolumeCode.BAD_TOKEN, "one token"),
]


@pytest.mark.parametrize(("text", "code", "message"), [pytest.param(*row[1:], id=row[0]) for row in TOKENS])
def test_tokens_refused(text: str, code: VolumeCode, message: str) -> None:
    request = replace(GOOD, context=csi_context(serviceAccount__tokens=text))
    with pytest.raises(VolumeError) as caught:
        token_of(request, "istio-ca")
    assert caught.value.code is code
    assert message in caught.value.public
    wanted = Category.FAILED_PRECONDITION if code is VolumeCode.NO_TOKEN else Category.INVALID_ARGUMENT
    assert caught.value.category is wanted


def test_tokens_come_in_secrets_too() -> None:
    request = replace(
        GOOD, context=csi_context(serviceAccount__tokens=""), secrets={CSI_TOKENS: csi_tokens("from-secrets")}
    )
    assert token_of(request, "istio-ca") == "from-secrets"
    both = replace(GOOD, secrets={CSI_TOKENS: csi_tokens("newer")})
    assert token_of(both, "istio-ca") == "newer"


def test_a_request_never_shows_its_tokens() -> None:
    request = replace(GOOD, secrets={CSI_TOKENS: csi_tokens("hidden")})
    assert "tok-1" not in repr(request)
    assert "hidden" not in repr(request)


@given(st.text(max_size=80))
def test_no_path_leaves_the_directory_of_pods(tail: str) -> None:
    with suppress(VolumeError):
        parts = target_parts(f"{PODS}/{tail}", PODS)
        assert parts
        assert not {"", ".", ".."} & set(parts)


@given(st.dictionaries(st.sampled_from(list(csi_context())) | st.text(max_size=9), st.text(max_size=40)))
def test_any_context_is_read_or_refused(context: dict[str, str]) -> None:
    request = replace(GOOD, context=context)
    for call in (lambda: parse_publish(request, pods=PODS), lambda: token_of(request, "istio-ca")):
        with suppress(VolumeError):  # and nothing else
            call()


def test_volume_ids() -> None:
    assert check_volume_id("csi-0123abc") == "csi-0123abc"
