"""`meshctl inject` and `uninject`: streams in and out, every kind, reasons, exit codes (injector a.5)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from injector.core.workloads import TEMPLATES
from mesh.yamldoc import load_documents
from meshctl.stream import MAX_DOCUMENTS, changed_text, dump, split
from meshctl.terminal import Colour, Screen
from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_cli import ctl, golden_script
from tests.fakes.meshctl_cluster import NAMESPACE, install, namespace

APP = """\
# Source: shop
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}   # stays as it is
spec: {ports: [{port: 80}]}
---
# the application
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web:1
        env: [{name: A, value: "1e3"}, {name: B, value: "y"}, {name: C, value: "0o17"}]
        readinessProbe: {httpGet: {path: /ready, port: 8080}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly, namespace: kube-system}
spec:
  schedule: "0 0 * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: b}]}}}}
"""
POD = (
    "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop},"
    " spec: {containers: [{name: a, image: b}]}}\n"
)


def documents(text: str) -> list[Any]:
    return [document.data for document in load_documents(text, "out")]


def workload(kind: str) -> dict[str, Any]:
    """A manifest of that kind with one pod template."""
    pod: dict[str, Any] = {
        "metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "a", "image": "b"}]},
    }
    path = TEMPLATES[kind]
    for key in reversed(path):
        pod = {key: pod}
    if not path:
        pod["metadata"] = {}
    pod.setdefault("metadata", {})
    pod["metadata"] |= {"name": "x", "namespace": "shop"}
    return {"apiVersion": "example/v1", "kind": kind, **pod}


def template_of(manifest: Any, kind: str) -> dict[str, Any]:
    for key in TEMPLATES[kind]:
        manifest = manifest[key]
    return dict(manifest)


def containers(pod: Any) -> list[str]:
    return [c["name"] for key in ("initContainers", "containers") for c in pod["spec"].get(key) or ()]


def test_a_stream() -> None:
    """e.2: documents that do not change stay byte for byte; fields keep order and meaning."""
    ran = ctl("inject", "-f", "-", stdin=APP)
    assert ran.code == 0
    service, deployment, job = ran.out.split("---\n")
    assert (service + "---\n") in APP
    assert job in APP
    assert deployment.startswith("# the application\napiVersion: apps/v1\nkind: Deployment\n")
    env = documents(deployment)[0]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [item["value"] for item in env] == ["1e3", "y", "0o17"]
    golden_script("inject-stream", type(ran)(ran.arguments, ran.code, "", ran.err))


def test_round_trip() -> None:
    injected = ctl("inject", "-f", "-", stdin=APP).out
    ran = ctl("uninject", "-f", "-", stdin=injected)
    assert documents(ran.out) == documents(APP)
    again = ctl("inject", "-f", "-", stdin=injected)
    assert again.out == injected
    assert "unchanged: the sidecar is as it should be [up_to_date]" in again.err
    golden_script("uninject", type(ran)(ran.arguments, ran.code, "", ran.err))


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
def test_every_kind(kind: str) -> None:
    text = yaml.safe_dump(workload(kind))
    ran = ctl("inject", "-f", "-", stdin=text)
    assert "istio-proxy" in containers(template_of(documents(ran.out)[0], kind))
    assert f"stdin:1: {kind.lower()} shop/x: injected: the sidecar is added [injected]" in ran.err
    back = ctl("uninject", "-f", "-", stdin=ran.out)
    assert documents(back.out)[0] == yaml.safe_load(text)


def test_lists_and_json() -> None:
    listed = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [workload("Deployment"), {"kind": "Other"}, workload("Pod")],
    }
    ran = ctl("inject", "-f", "-", stdin=json.dumps(listed))
    found = json.loads(ran.out)
    assert found["items"][1] == {"kind": "Other"}
    assert "istio-proxy" in containers(found["items"][0]["spec"]["template"])
    assert "istio-proxy" in containers(found["items"][2])
    assert ran.err.count("injected:") == 2
    ran = ctl("inject", "-f", "-", "-o", "json", stdin=APP)
    decoder, rest, kinds = json.JSONDecoder(), ran.out, []
    while rest.strip():
        item, end = decoder.raw_decode(rest.lstrip())
        rest = rest.lstrip()[end:]
        kinds.append(item["kind"])
    assert kinds == ["Service", "Deployment", "CronJob"]


def test_unknown_kinds_pass_through() -> None:
    text = "kind: Rollin\nspec: {template: {spec: {}}}\n--- # nothing\n# only words\n---\n- a list\n"
    ran = ctl("inject", "-f", "-", stdin=text)
    assert (ran.code, ran.out) == (0, text)
    assert "rollin: unchanged: it has no pods [not_applicable]" in ran.err


def test_refused_objects_stop_everything() -> None:
    bad = POD.replace("namespace: shop}", "namespace: shop, annotations: {sidecar.istio.io/proxyCPU: x}}")
    ran = ctl("inject", "-f", "-", stdin=f"{POD}---\n{bad}")
    assert (ran.code, ran.out) == (1, "")
    golden_script("inject-refused", ran)


def test_warnings_are_told() -> None:
    text = POD.replace("spec: {", "spec: {hostNetwork: true, ")
    ran = ctl("inject", "-q", "-f", "-", stdin=text)
    assert (ran.code, ran.out) == (0, text)
    assert "[host_network]" in ran.err
    assert "  warning: host_network: hostNetwork is true" in ran.err


def test_quiet_tells_what_was_done_only() -> None:
    ran = ctl("inject", "-q", "-f", "-", stdin=APP)
    assert ran.err.splitlines() == [
        "stdin:8: deployment shop/web: injected: the sidecar is added [injected]",
        "1 injected, 2 left alone",
    ]


def test_diff() -> None:
    ran = ctl("inject", "--diff", "-f", "-", stdin=POD)
    assert ran.out.startswith("--- pod/shop/p\n+++ pod/shop/p (as printed without --diff)\n")
    assert max(map(len, ran.out.splitlines())) < 200
    assert not [line for line in ran.out.splitlines()[2:] if line.startswith("-")]
    found = json.loads(ctl("inject", "--diff", "-o", "json", "-f", "-", stdin=POD).out)
    keys = {"place", "kind", "name", "result", "code", "message", "problems", "warnings", "changes", "patch"}
    assert [set(item) for item in found] == [keys]
    assert (found[0]["result"], found[0]["code"]) == ("injected", "injected")
    assert {op["op"] for op in found[0]["patch"]} <= {"add", "replace"}


@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ("istio-injection=disabled", "[namespace_disabled]"),
        ("istio-injection=enabled,a=b", "[injected]"),
        ("istio.io/rev=other", "[not_selected]"),
        ("", "[injected]"),
    ],
    ids=["disabled", "enabled", "revision", "empty"],
)
def test_namespace_labels(labels: str, word: str) -> None:
    arguments = ["--namespace-labels", labels] if labels else []
    assert word in ctl("inject", "-f", "-", *arguments, stdin=POD).err


def test_namespaces_of_the_stream() -> None:
    said = "kind: Namespace\nmetadata: {name: shop, labels: {istio-injection: disabled}}\n---\n"
    assert "[namespace_disabled]" in ctl("inject", "-f", "-", stdin=said + POD).err
    listed = json.dumps({"kind": "List", "items": [yaml.safe_load(said[:-4])]}) + "\n---\n"
    assert "[namespace_disabled]" in ctl("inject", "-f", "-", stdin=listed + POD).err
    notes = "kind: Namespace\nmetadata: {name: shop, annotations: {sidecar.istio.io/logLevel: debug}}\n---\n"
    assert "debug" in ctl("inject", "-f", "-", stdin=notes + POD).out
    strange = "kind: Namespace\nmetadata: {name: shop, labels: {a: 1}}\n---\n"
    assert "[injected]" in ctl("inject", "-f", "-", stdin=strange + POD).err


def test_settings_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "injector.yaml"
    file.write_text("injection: {proxy_image: 'r.example/p:2', selection: {revision: blue}}\n")
    ran = ctl("inject", "-f", "-", "--config", str(file), stdin=POD)
    assert "image: r.example/p:2" in ran.out
    assert "istio.io/rev: blue" in ran.out
    file.write_text("injection: {proxy_imge: x}\n")
    ran = ctl("inject", "-f", "-", "--config", str(file), stdin=POD)
    assert (ran.code, ran.out) == (2, "")
    assert "proxy_imge" in ran.err
    assert "[ctl_settings]" in ran.err


def test_nodes_capture(tmp_path: Path) -> None:
    file = tmp_path / "injector.yaml"
    file.write_text("injection: {node_capture: true}\n")
    ran = ctl("inject", "-f", "-", "--config", str(file), stdin=POD)
    (pod,) = documents(ran.out)
    assert [c["name"] for c in pod["spec"]["initContainers"]] == ["istio-validation", "istio-proxy"]
    back = ctl("uninject", "-f", "-", stdin=ran.out)
    assert "initContainers" not in documents(back.out)[0]["spec"]


def test_classic_clusters() -> None:
    pod = documents(ctl("inject", "--classic", "-f", "-", stdin=POD).out)[0]
    assert "istio-proxy" in [c["name"] for c in pod["spec"]["containers"]]
    pod = documents(ctl("inject", "-f", "-", stdin=POD).out)[0]
    assert "istio-proxy" in [c["name"] for c in pod["spec"]["initContainers"]]


def test_the_cluster_decides_when_asked(tmp_path: Path) -> None:
    with FakeKube() as kube:
        install(kube)
        kube.add(namespace("plain"))
        config = ("--kubeconfig", str(kube.kubeconfig(tmp_path)))
        ran = ctl("inject", "--cluster", "-f", "-", *config, stdin=POD)
        pod = documents(ran.out)[0]
        assert "istio-proxy" in [c["name"] for c in pod["spec"]["containers"]], "1.20 has no native sidecars"
        ran = ctl("inject", "--cluster", "-f", "-", *config, stdin=POD.replace("shop", "plain"))
        assert "[not_selected]" in ran.err
        ran = ctl("inject", "--cluster", "--config", "x", "-f", "-", *config, stdin=POD)
        assert (ran.code, "--config and --cluster" in ran.err) == (2, True)
        kube.remove("MutatingWebhookConfiguration", "gatehouse-sidecar-injector")
        ran = ctl("inject", "--cluster", "-f", "-", *config, stdin=POD)
        assert (ran.code, "[ctl_not_installed]" in ran.err) == (2, True)


def test_the_kubelets_of_the_cluster_decide_too(tmp_path: Path) -> None:
    """The same answer as the webhook's: native where upkeep says that every node can, else not."""
    with FakeKube(minor=31) as kube:
        install(kube)
        config = ("--kubeconfig", str(kube.kubeconfig(tmp_path)))

        def native() -> bool:
            pod = documents(ctl("inject", "--cluster", "-f", "-", *config, stdin=POD).out)[0]
            return "istio-proxy" in [c["name"] for c in pod["spec"]["initContainers"]]

        def publish(text: str) -> None:
            meta = {"name": "gatehouse-nodes", "namespace": NAMESPACE}
            kube.add({"kind": "ConfigMap", "metadata": meta, "data": {"nodes.json": text}})

        assert not native(), "nothing is published"
        publish('{"schema":1,"oldest":29,"native_labels":[]}')
        assert native()
        publish('{"schema":1,"oldest":28,"native_labels":[]}')
        assert not native()
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/gatehouse-nodes"
        kube.routes["GET", path] = lambda _: (403, {"reason": "Forbidden"})
        assert not native(), "we may not read it"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: 1\n---\nb: [\n", "stdin:4: not YAML"),
        ("a: 1\n---\n\nb: 1\nb: 2\n", "stdin:5: key 'b' is written twice"),
        (POD.replace("containers: [", "containers: {}, x: ["), "stdin:1: Pod p: spec.containers"),
        (POD.replace("{name: p,", "{name: p, labels: {a: 1},"), "metadata.labels['a']"),
        (
            POD.replace("{name: p,", "{name: p, annotations: {sidecar.istio.io/status: '{\"schema\":1'},"),
            "status",
        ),
    ],
    ids=["syntax", "duplicate", "shape", "label", "status"],
)
def test_bad_documents_say_where(text: str, fragment: str) -> None:
    ran = ctl("inject", "-f", "-", stdin=text)
    assert (ran.code in {1, 2}, ran.out) == (True, "")
    assert fragment in ran.err


def test_uninject_refuses_what_it_did_not_write() -> None:
    for note in ('sidecar.istio.io/status: "{}"',):
        text = POD.replace("{name: p,", f"{{name: p, annotations: {{{note}}},")
        ran = ctl("uninject", "-f", "-", stdin=text)
        assert (ran.code, ran.out) == (2, "")
        assert "stdin:1: annotation sidecar.istio.io/status is not what the injector wrote" in ran.err
        assert "next: remove it" in ran.err


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    ran = ctl("inject", "-f", str(tmp_path / "none.yaml"))
    assert (ran.code, "none.yaml: cannot be read: No such file" in ran.err) == (2, True)
    (tmp_path / "bin").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text [ctl_file]" in ctl("inject", "-f", str(tmp_path / "bin")).err
    assert "standard input can be read once" in ctl("inject", "-f", "-", "-f", "-").err
    assert "written KEY=VALUE" in ctl("inject", "-f", "-", "--namespace-labels", "x", stdin=POD).err


def test_several_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(APP)
    (tmp_path / "b.yaml").write_text(POD)
    ran = ctl("inject", "-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml"))
    assert ran.code == 0
    assert ran.out.count("\n---\n") == 3
    assert [d["kind"] for d in documents(ran.out)] == ["Service", "Deployment", "CronJob", "Pod"]


def test_too_many_documents() -> None:
    ran = ctl("inject", "-f", "-", stdin="---\na: 1\n" * (MAX_DOCUMENTS + 1))
    assert (ran.code, "documents; split it" in ran.err) == (2, True)


TEXTS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=12) | st.sampled_from(
    [
        "y",
        "N",
        "on",
        "1e3",
        "0o17",
        "0x1F",
        "1_000",
        "12:30",
        "-.5",
        "~",
        "null",
        "=",
        "<<",
        "a\nb\n",
        "a \nb",
        ".inf",
        "+1",
    ]
)
VALUES = st.recursive(
    TEXTS | st.integers(-(2**60), 2**60) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "spec"]), VALUES, min_size=1))
def test_what_is_written_is_read_alike(data: dict[str, Any]) -> None:
    """Law: our YAML means the same to our strict reader and to PyYAML's."""
    text = dump(data)
    assert load_documents(text, "x")[0].data == data
    assert yaml.safe_load(text) == data


@given(st.lists(st.sampled_from(["a: 1\n", "# c\n", "\n", "b: |\n  x\n  --- y\n", POD]), max_size=6))
def test_unchanged_streams_are_the_same_bytes(parts: list[str]) -> None:
    """Law: what goes in comes out, whatever the separators."""
    for separator in ("---\n", "--- # note\n", "---\r\n"):
        text = separator.join(parts)
        chunks = list(split(text, "x"))
        assert "".join(chunk.text for chunk in chunks) == text


def test_documents_ended_by_dots() -> None:
    chunks = list(split("a: 1\n...\n---\n# c\nb: 2\n...\n", "x"))
    assert [chunk.data for chunk in chunks] == [{"a": 1}, {"b": 2}]
    assert [chunk.line for chunk in chunks] == [1, 5]
    assert changed_text(chunks[1], {"b": 3}) == "---\n# c\nb: 3\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
    ids=["terminal", "no-color", "dumb", "empty"],
)
def test_colours_on_terminals_only(environ: dict[str, str], coloured: bool) -> None:
    out = Terminal()
    screen = Screen.of_process(out, out, environ)
    assert screen.paint("x", Colour.RED) == ("\x1b[31mx\x1b[0m" if coloured else "x")
    screen.remark("y", Colour.GREEN)
    assert ("\x1b" in out.getvalue()) is coloured
    assert Screen.of_process(io.StringIO(), io.StringIO(), {}).paint("x", Colour.RED) == "x"
