"""`meshctl check --traffic` against a fake API server: what is made, waited for, and taken away again."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshctl.checks.rows import View
from meshctl.cluster import Cluster, find_installation
from meshctl.terminal import Screen
from meshctl.traffic.plan import NAME, NAME_LABEL, Role
from meshctl.traffic.probe import Got
from meshctl.traffic.run import check_traffic
from meshctl.traffic.wish import Wish
from tests.fakes.kube_store import ApiError, Obj
from tests.fakes.meshctl_check import check, rows
from tests.fakes.meshctl_cli import Ran, ctl, golden_script
from tests.fakes.meshctl_cluster import NAMESPACE, deployment, install, namespace, pod, root_map
from tests.fakes.meshctl_traffic import TrafficKube, requests_of, waiting

KINDS = (
    *("Pod", "Service", "ServiceAccount"),
    *("PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"),
)
ROWS = ("pods", "identity", "rules", "plaintext", "tokens", "finished")


@pytest.fixture
def kube() -> Iterator[TrafficKube]:
    with TrafficKube() as found:
        install(found)
        yield found


def traffic(kube: TrafficKube, tmp_path: Path, *arguments: str) -> tuple[Ran, dict[str, dict[str, Any]]]:
    """A run, and its rows about traffic by the end of their names."""
    ran = check(kube, tmp_path, "--traffic", "-o", "json", *arguments)
    found = {
        str(name).removeprefix("traffic-"): row
        for name, row in rows(ran).items()
        if row["section"] == "traffic"
    }
    return ran, found


def left(kube: TrafficKube) -> list[str]:
    """What a run has left behind."""
    found = [item for kind in (*KINDS, "Namespace") for item in kube.all(kind)]
    ours = [item for item in found if (item["metadata"].get("labels") or {}).get(NAME_LABEL) == NAME]
    return [item["metadata"]["name"] for item in ours]


def pending(item: Obj) -> None:
    item["status"] = {"phase": "Pending"}


def test_all_is_well_and_nothing_is_left(kube: TrafficKube, tmp_path: Path) -> None:
    ran = check(kube, tmp_path, "--traffic")
    (run,) = set(re.findall(r"gatehouse-traffic-([0-9a-f]{6})", ran.out))
    seconds = re.findall(r"with a sidecar (\([0-9]+ s\))", ran.out)
    names = {run: "RUN", seconds[0]: "(N s)", f" --kubeconfig {tmp_path}/kubeconfig": ""}
    golden_script("check-traffic", ran, names=names)
    assert ran.code == 0
    assert left(kube) == []
    assert not kube.find("Namespace", f"gatehouse-traffic-{run}")
    assert kube.find("Pod", "web-5d9c-a", "shop")


def test_pods_are_as_the_control_plane_is(kube: TrafficKube, tmp_path: Path) -> None:
    item = deployment("injector", 2, 2)
    spec = item["spec"]["template"]["spec"]
    spec["containers"][0] |= {"image": "r.example/control:7", "imagePullPolicy": "Always"}
    spec["imagePullSecrets"] = [{"name": "pull"}]
    kube.add(item)
    ran, _ = traffic(kube, tmp_path)
    assert ran.code == 0
    assert set(kube.kept) == set(Role)
    for found in kube.kept.values():
        (app,) = [c for c in found["spec"]["containers"] if c["name"] == "app"]
        assert (app["image"], app["imagePullPolicy"]) == ("r.example/control:7", "Always")
        assert found["spec"]["imagePullSecrets"] == [{"name": "pull"}]
        assert found["spec"]["activeDeadlineSeconds"] == 180
    traffic(kube, tmp_path, "--image", "r.example/other:1")
    app = next(c for c in kube.kept[Role.OTHER]["spec"]["containers"] if c["name"] == "app")
    assert app["image"] == "r.example/other:1"


def test_each_run_has_names_and_tokens_of_its_own(kube: TrafficKube, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        traffic(kube, tmp_path)
        item = kube.kept[Role.ALLOWED]
        seen.append({item["metadata"]["namespace"], requests_of(item)[-1].token})
    assert not seen[0] & seen[1]


def test_a_namespace_that_is_there_stays_and_so_does_what_is_in_it(kube: TrafficKube, tmp_path: Path) -> None:
    kube.add(namespace("zoo", istio_injection="enabled"), root_map("zoo"), pod("mine", namespace="zoo"))
    ran, found = traffic(kube, tmp_path, "--traffic-namespace", "zoo")
    assert (ran.code, tuple(found)) == (0, ROWS)
    assert left(kube) == []
    assert kube.find("Pod", "mine", "zoo")
    written = [r for r in kube.requests if r.method in {"POST", "DELETE"} and r.query.get("dryRun") != "All"]
    assert {request.path.partition("/namespaces/")[2].partition("/")[0] for request in written} == {"zoo"}


def test_a_namespace_that_is_not_there(kube: TrafficKube, tmp_path: Path) -> None:
    ran, found = traffic(kube, tmp_path, "--traffic-namespace", "none")
    assert ran.code == 1
    assert found["setup"]["message"] == "there is no namespace none"


def test_what_is_kept_is_said_and_lives_on(kube: TrafficKube, tmp_path: Path) -> None:
    kube.got["other identity"] = Got(name="other identity", status=200)
    ran, found = traffic(kube, tmp_path, "--keep")
    (where,) = re.findall(r"kubectl delete namespace (gatehouse-traffic-\w+)", ran.err)
    assert kube.find("Namespace", where)
    assert {item["metadata"]["namespace"] for item in kube.kept.values()} == {where}
    assert all("activeDeadlineSeconds" not in item["spec"] for item in kube.kept.values())
    assert f"kubectl -n {where} logs server-" in found["rules"]["next"]


def test_an_answer_that_is_wrong_is_a_failure(kube: TrafficKube, tmp_path: Path) -> None:
    kube.got["plaintext"] = Got(name="plaintext", status=200, text="hello")
    ran, found = traffic(kube, tmp_path)
    assert {name: row["status"] for name, row in found.items()} == {
        **dict.fromkeys(ROWS, "ok"),
        "plaintext": "fail",
    }
    assert ran.code == 1
    assert left(kube) == []


def test_no_sidecar_ends_it_at_once(kube: TrafficKube, tmp_path: Path) -> None:
    kube.not_injected = True
    ran, found = traffic(kube, tmp_path)
    assert found["pods"]["status"] == "fail"
    assert "it has no sidecar" in found["pods"]["objects"][0]
    assert "logs deployment/gatehouse-injector" in found["pods"]["next"]
    assert set(kube.kept) == {Role.SERVER}
    assert (ran.code, left(kube)) == (1, [])


def test_no_image_ends_it_at_once(kube: TrafficKube, tmp_path: Path) -> None:
    kube.changes[Role.SERVER] = lambda item: waiting(item, "app", "ImagePullBackOff")
    _, found = traffic(kube, tmp_path)
    assert "cannot be pulled in namespace gatehouse-traffic-" in found["pods"]["objects"][0]
    assert set(kube.kept) == {Role.SERVER}
    assert left(kube) == []


def test_the_time_is_bounded(kube: TrafficKube, tmp_path: Path) -> None:
    kube.changes[Role.OTHER] = pending
    start = time.monotonic()
    ran, found = traffic(kube, tmp_path, "--traffic-timeout", "1")
    assert time.monotonic() - start < 20
    assert {name: row["status"] for name, row in found.items()} == {
        **dict.fromkeys(ROWS, "ok"),
        "pods": "fail",
        "rules": "skip",
    }
    assert (ran.code, left(kube)) == (1, [])


def test_a_server_that_stumbles_is_asked_again(kube: TrafficKube, tmp_path: Path) -> None:
    kube.fail(500, times=1, method="GET", path=r"/api/v1/namespaces/gatehouse-traffic-\w+/pods")
    _, found = traffic(kube, tmp_path)
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(ROWS, "ok")


POLICIES = r"/apis/security.istio.io/v1/namespaces/gatehouse-traffic-\w+/peerauthentications"
PODS = r"/api/v1/namespaces/gatehouse-traffic-\w+/pods"
REFUSED = [
    (
        "no right",
        403,
        r"/api/v1/namespaces",
        "cannot create resource",
        "who may create and delete namespaces",
    ),
    ("no kind", 404, POLICIES, "the server could not find", "kubectl get crd"),
    ("no webhook", 500, PODS, "failed calling webhook x: refused", "logs deployment/gatehouse-injector"),
    ("pod security", 403, PODS, 'violates PodSecurity "restricted"', "enforce=privileged"),
    ("quota", 403, PODS, "exceeded quota", "what the message says"),
]


@pytest.mark.parametrize(
    ("status", "path", "message", "then"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_an_object_that_is_refused(
    kube: TrafficKube, tmp_path: Path, status: int, path: str, message: str, then: str
) -> None:
    kube.refusals["POST", path] = ApiError(status, "Reason", message)
    ran, found = traffic(kube, tmp_path)
    assert list(found) == ["setup"]
    assert found["setup"]["status"] == "fail"
    assert message in found["setup"]["message"]
    assert then in found["setup"]["next"]
    assert (ran.code, left(kube)) == (1, [])


def test_what_was_refused_is_not_deleted(kube: TrafficKube, tmp_path: Path) -> None:
    """It is not there, or it is somebody else's."""
    kube.refusals["POST", r"/api/v1/namespaces"] = ApiError(409, "AlreadyExists", "already exists")
    _, found = traffic(kube, tmp_path)
    assert list(found) == ["setup"]
    assert not [request for request in kube.requests if request.method == "DELETE"]


def test_a_server_that_goes_away_is_exit_code_3_and_the_namespace_is_deleted(
    kube: TrafficKube, tmp_path: Path
) -> None:
    kube.cut(times=1, method="POST", path=r"/api/v1/namespaces/gatehouse-traffic-\w+/services")
    ran = check(kube, tmp_path, "--traffic")
    assert (ran.code, "[kube_unreachable]" in ran.err) == (3, True)
    assert left(kube) == []


def test_what_cannot_be_taken_away_is_said(kube: TrafficKube, tmp_path: Path) -> None:
    kube.refusals["DELETE", r"/api/v1/namespaces/[^/]+"] = ApiError(403, "Forbidden", "not you")
    ran, found = traffic(kube, tmp_path)
    row = found["cleanup"]
    assert (row["status"], ran.code) == ("warn", 0)
    assert "not you" in row["message"]
    assert re.fullmatch(r"kubectl delete namespace gatehouse-traffic-\w+", row["next"])


def test_pods_that_go_slowly_are_not_waited_for_for_long(
    kube: TrafficKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubelets up to 1.20 need a minute; they do it alone."""
    monkeypatch.setattr("meshctl.traffic.run._GONE_SECONDS", 0.2)
    kube.changes[Role.SERVER] = lambda item: item["metadata"].update(finalizers=["kubelet"])
    _, found = traffic(kube, tmp_path)
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(ROWS, "ok")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_takes_everything_away(
    kube: TrafficKube, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    kube.changes[Role.SERVER] = pending
    words = ["check", "--traffic", "--kubeconfig", str(kube.kubeconfig(tmp_path))]
    # A shell makes its background jobs, and so perhaps this one, deaf to SIGINT.
    program = "import signal, sys; from meshctl.__main__ import main"
    program += "; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as process:
        with kube.store.changed:
            assert kube.store.changed.wait_for(lambda: Role.SERVER in kube.kept, 30)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, "", "")
    assert left(kube) == []


def test_an_interrupt_that_leaves_something_says_so(kube: TrafficKube, tmp_path: Path) -> None:
    kube.refusals["DELETE", r"/api/v1/namespaces/[^/]+"] = ApiError(403, "Forbidden", "not you")
    kube.cut(times=1, method="POST", path=r"/api/v1/namespaces/gatehouse-traffic-\w+/services")
    ran = check(kube, tmp_path, "--traffic")
    assert ran.code == 3
    assert re.search(r"not everything is taken away: .*not you; next: kubectl delete namespace \S+", ran.err)


@pytest.mark.parametrize("path", [PODS, r"/apis/apps/v1/namespaces/istio-system/deployments", "/api/v1/pods"])
def test_a_right_to_read_that_is_missing(kube: TrafficKube, tmp_path: Path, path: str) -> None:
    """Who asks for traffic wants it tried: not a skip, as for a row among others."""
    kube.refusals["GET", path] = ApiError(403, "Forbidden", "may not list")
    ran, found = traffic(kube, tmp_path)
    assert (found["setup"]["status"], ran.code) == ("fail", 1)
    assert "may not list" in found["setup"]["message"]
    assert left(kube) == []


def test_progress_is_for_terminals(kube: TrafficKube) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    cluster = Cluster(kube.api(), "default", NAMESPACE)
    view = View(cluster, find_installation(cluster))
    for err, wanted in ((Terminal(), True), (io.StringIO(), False)):
        check_traffic(view, Wish(), Screen(io.StringIO(), err))
        said = err.getvalue()
        assert ("traffic: make Pod server-" in said) is wanted
        assert ("traffic: take namespace gatehouse-traffic-" in said) is wanted


def test_earlier_runs_that_were_killed(kube: TrafficKube, tmp_path: Path) -> None:
    old = {"creationTimestamp": "2020-01-01T00:00:00Z"}
    item = namespace("gatehouse-traffic-dead")
    item["metadata"] |= {**old, "labels": {NAME_LABEL: NAME}}
    kube.add(item, pod("server-x", namespace="gatehouse-traffic-dead", labels={NAME_LABEL: NAME}))
    _, found = traffic(kube, tmp_path)
    assert found["leftovers"]["next"] == "kubectl delete namespace gatehouse-traffic-dead"
    kube.remove("Namespace", "gatehouse-traffic-dead")
    kube.remove("Pod", "server-x", "gatehouse-traffic-dead")
    kube.add(pod("server-y", **old, labels={NAME_LABEL: NAME}))
    _, found = traffic(kube, tmp_path)
    assert found["leftovers"]["objects"] == ["shop/server-y"]
    assert "kubectl -n shop delete pods,services" in found["leftovers"]["next"]


ARGUMENTS: list[tuple[tuple[str, ...], str]] = [
    (("--keep",), "--keep says how --traffic is done"),
    (("--image", "x"), "--image says how"),
    (("--traffic-namespace", "x"), "--traffic-namespace says how"),
    (("--traffic-timeout", "9"), "--traffic-timeout says how"),
    (("--traffic", "--pre"), "--traffic needs an installation"),
    (("--traffic", "--traffic-timeout", "0"), "allowed are seconds from 1 to 600"),
    (("--traffic", "--traffic-timeout", "601"), "allowed are seconds from 1 to 600"),
    (("--traffic", "--traffic-timeout", "nan"), "allowed are seconds from 1 to 600"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=[" ".join(a) for a, _ in ARGUMENTS])
def test_arguments_that_do_not_fit(arguments: tuple[str, ...], message: str) -> None:
    ran = ctl("check", *arguments)
    assert (ran.code, message in ran.err, "[ctl_argument]" in ran.err) == (2, True, True)


BROKEN: list[tuple[str, Callable[[TrafficKube], object], str]] = [
    (
        "no control image",
        lambda kube: kube.remove("Deployment", "gatehouse-injector", NAMESPACE),
        "no Deployment in istio-system has the control image",
    ),
    (
        "settings",
        lambda kube: kube.remove("ConfigMap", "gatehouse-injector-config", NAMESPACE),
        "not tried: ConfigMap istio-system/gatehouse-injector-config",
    ),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_an_installation_that_cannot_be_asked(
    kube: TrafficKube, tmp_path: Path, change: Callable[[TrafficKube], object], message: str
) -> None:
    change(kube)
    _, found = traffic(kube, tmp_path)
    assert found["setup"]["status"] == "fail"
    assert message in found["setup"]["message"]
    assert left(kube) == []


def test_without_an_installation_nothing_is_made(tmp_path: Path) -> None:
    with TrafficKube() as kube:
        ran = check(kube, tmp_path, "--traffic")
        assert (ran.code, "Gatehouse is not installed" in ran.out) == (1, True)
        assert not [request for request in kube.requests if request.method == "POST"]
