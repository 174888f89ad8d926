"""Options of a pod: every key, every parser, and all errors at once (b.12)."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import pytest

from injector.core.capture import PortRange
from injector.core.option_table import REFUSED
from injector.core.options import OPTIONS, InterceptionMode, PodOptions, reference_page, resolve_options
from injector.core.values import ScrapeTarget

S, T, R = "sidecar.istio.io/", "traffic.sidecar.istio.io/", "readiness.status.sidecar.istio.io/"

GOOD: list[tuple[str, str, Any]] = [
    (S + "nativeSidecar", "True", True),
    (S + "proxyImage", "registry.example:5000/a/b_c:1.0@sha256:" + "0" * 64, None),
    (S + "proxyCPU", "50m", "50m"),
    (S + "proxyMemory", "64Mi", "64Mi"),
    (S + "proxyCPULimit", "1.5", "1.5"),
    (S + "proxyMemoryLimit", "2Gi", "2Gi"),
    (S + "concurrency", "4", 4),
    (S + "interceptionMode", "NONE", InterceptionMode.NONE),
    (S + "logLevel", "debug", "debug"),
    (S + "componentLogLevel", "upstream:debug, rbac:trace", "upstream:debug,rbac:trace"),
    (S + "userVolume", '{"a":{"emptyDir":{}}}', {"a": {"emptyDir": {}}}),
    (S + "userVolumeMount", '[{"name":"a","mountPath":"/a"}]', {"a": {"mountPath": "/a"}}),
    (S + "rewriteAppHTTPProbers", "FALSE", False),
    (S + "holdApplicationUntilProxyStarts", "false", False),
    (S + "terminationDelaySeconds", "0", 0),
    (S + "statsInclusionPrefixes", "cluster.a, cluster.b", ("cluster.a", "cluster.b")),
    (S + "statsInclusionSuffixes", "rq_time", ("rq_time",)),
    (R + "initialDelaySeconds", "1", 1),
    (R + "periodSeconds", "2", 2),
    (R + "failureThreshold", "3", 3),
    (T + "includeInboundPorts", "80,90-91", (PortRange(80, 80), PortRange(90, 91))),
    (T + "excludeInboundPorts", "", ()),
    (T + "includeOutboundIPRanges", "10.0.0.0/8", ("10.0.0.0/8",)),
    (T + "excludeOutboundIPRanges", "fd00::/8", ("fd00::/8",)),
    (T + "includeOutboundPorts", "443", (PortRange(443, 443),)),
    (T + "excludeOutboundPorts", "25", (PortRange(25, 25),)),
    (T + "excludeInterfaces", "eth1", ("eth1",)),
    ("istio.io/reroute-virtual-interfaces", "net1", ("net1",)),
    (T + "kubevirtInterfaces", "net1,net2", ("net1", "net2")),
    ("prometheus.istio.io/merge-metrics", "false", False),
    (
        "prometheus.istio.io/scrape-targets",
        "8080:/m,9100",
        (ScrapeTarget(8080, "/m"), ScrapeTarget(9100, "/metrics")),
    ),
]

BAD: list[tuple[str, str, str]] = [
    (S + "nativeSidecar", "yes", 'expected "true" or "false"'),
    (S + "proxyImage", "proxy", "expected an image reference"),
    (S + "proxyImage", "a/b:1\nx", "expected an image reference"),
    (S + "proxyImage", "a/B", "expected an image reference"),
    (S + "proxyCPU", "100m\n", "expected a quantity"),
    (S + "proxyCPU", "100\x00m", "expected a quantity"),
    (S + "proxyCPU", "-1", "expected a quantity"),
    (S + "proxyCPU", "\uff11", "expected a quantity"),
    (S + "proxyMemory", "1Zi", "expected a quantity"),
    (S + "proxyCPULimit", "1 ", "expected a quantity"),
    (S + "proxyMemoryLimit", "", "expected a quantity"),
    (S + "concurrency", "0", "expected a whole number from 1 to 64"),
    (S + "concurrency", "65", "expected a whole number from 1 to 64"),
    (S + "interceptionMode", "TPROXY", "TPROXY is not supported yet"),
    (S + "interceptionMode", "redirect", "expected REDIRECT or NONE"),
    (S + "logLevel", "loud", "expected one of trace"),
    (S + "componentLogLevel", "nosuch:debug", "'nosuch:debug' is not component:level"),
    (S + "componentLogLevel", "upstream:loud", "'upstream:loud' is not component:level"),
    (S + "componentLogLevel", "", "'' is not component:level"),
    (S + "componentLogLevel", ",".join(["upstream:debug"] * 200), "at most"),
    (S + "userVolume", "[", "expected JSON"),
    (S + "userVolume", "[1]", "expected an object such as"),
    (S + "userVolume", '{"a":1}', "expected an object such as"),
    (S + "userVolume", '{"A_b":{}}', "is not a name"),
    (S + "userVolume", '{"a":{},"a":{}}', "a key occurs twice"),
    (S + "userVolume", '[{"name":"a"},{"name":"a"}]', "two entries have the same name"),
    (S + "userVolume", '{"a":{"x":NaN}}', "NaN is no JSON number"),
    (S + "userVolume", '{"a":{"x":"\\ud800"}}', "half of a surrogate pair"),
    (S + "userVolume", "[" * 20000, "nested too deeply"),
    (S + "userVolume", '{"a":"' + "x" * 40000 + '"}', "at most 32 KiB"),
    (S + "rewriteAppHTTPProbers", "1", 'expected "true" or "false"'),
    (S + "terminationDelaySeconds", "3601", "from 0 to 3600"),
    (S + "statsInclusionPrefixes", "a b", "comma list of names"),
    (S + "statsInclusionSuffixes", ",".join("abcdefghijkl" for _ in range(70)), "at most 64"),
    (R + "periodSeconds", "0", "from 1 to 3600"),
    (R + "failureThreshold", "1.5", "from 1 to 1000"),
    (R + "initialDelaySeconds", "-1", "from 0 to 86400"),
    (T + "includeInboundPorts", "a", "'a' is not a port"),
    (T + "excludeInboundPorts", "*", "'*' is not allowed here"),
    (T + "includeOutboundIPRanges", "10.0.0.1/8", "is not a CIDR block"),
    (T + "excludeOutboundIPRanges", "*", "'*' is not allowed here"),
    (T + "includeOutboundPorts", "0", "'0' is not a port"),
    (T + "excludeOutboundPorts", "80;flush ruleset", "is not a port"),
    (T + "excludeInterfaces", 'e"th', "is not an interface name"),
    ("prometheus.istio.io/merge-metrics", "maybe", 'expected "true" or "false"'),
    ("prometheus.istio.io/scrape-targets", "", "expected 1 to 16 targets"),
    ("prometheus.istio.io/scrape-targets", "x:/m", "'x' is not a port"),
    ("prometheus.istio.io/scrape-targets", "70000", "'70000' is not a port"),
    ("prometheus.istio.io/scrape-targets", "15090:/m", "port 15090 belongs to the proxy"),
    ("prometheus.istio.io/scrape-targets", "80:m", "'m' is not a path"),
    ("prometheus.istio.io/scrape-targets", "80:/a,80:/b", "two targets have the same port"),
]


def resolve(pod: dict[str, str], namespace: dict[str, str] | None = None) -> tuple[PodOptions, list[str]]:
    options, problems = resolve_options(pod, namespace or {}, PodOptions())
    return options, [str(p) for p in problems]


@pytest.mark.parametrize(("key", "text", "value"), GOOD, ids=[row[0] for row in GOOD])
def test_good_values(key: str, text: str, value: Any) -> None:
    options, problems = resolve({key: text})
    assert not problems
    field = next(o.field for o in OPTIONS if o.key == key)
    assert getattr(options, field) == (text if value is None else value)
    untouched = dataclasses.replace(options, **{field: getattr(PodOptions(), field)})
    assert untouched == PodOptions(), "one annotation changes one option (trap: resources all or nothing)"


def test_every_option_has_a_row() -> None:
    assert {key for key, _, _ in GOOD} == {option.key for option in OPTIONS}


@pytest.mark.parametrize(
    ("key", "text", "said"), BAD, ids=[f"{k.split('/')[1]}-{t[:12]!r}" for k, t, _ in BAD]
)
def test_bad_values(key: str, text: str, said: str) -> None:
    options, problems = resolve({key: text})
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"invalid value {text[:60]!r} for annotation {key!r}: ")
    assert said in problems[0]
    assert len(problems[0]) < 400
    assert options == PodOptions()


def test_all_errors_at_once() -> None:
    _, problems = resolve({S + "proxyCPU": "x", S + "logLevel": "y", T + "includeInboundPorts": "z"})
    assert len(problems) == 3


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_cannot_be_honoured_is_refused(key: str) -> None:
    _, problems = resolve({key: "x"})
    assert len(problems) == 1
    assert REFUSED[key] in problems[0]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (S + "proxyCpu", "unknown annotation; did you mean 'sidecar.istio.io/proxyCPU'?"),
        (T + "includeInboundPort", "did you mean 'traffic.sidecar.istio.io/includeInboundPorts'?"),
        ("proxy.istio.io/zzzzzz", "docs/annotations.md lists them all"),
        ("prometheus.istio.io/merge-metric", "did you mean 'prometheus.istio.io/merge-metrics'?"),
    ],
)
def test_a_misspelt_key_is_an_error(key: str, said: str) -> None:
    assert said in resolve({key: "100m"})[1][0]


def test_keys_of_others_are_nobodys_business() -> None:
    foreign = {
        "example.com/x": "\x00",
        "prometheus.io/scrape": "true",
        "istio.io/rev": "x",
        S + "status": "{}",
    }
    assert resolve(foreign)[1] == []


def test_the_pod_beats_its_namespace_which_beats_the_mesh() -> None:
    namespace = {S + "proxyCPU": "10m", S + "logLevel": "info"}
    options, problems = resolve_options({S + "proxyCPU": "20m"}, namespace, PodOptions(proxy_memory="1Mi"))
    assert not problems
    assert (options.proxy_cpu, options.log_level, options.proxy_memory) == ("20m", "info", "1Mi")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (S + "proxyCPU", "x", "expected a quantity"),
        (S + "userVolume", "{}", "allowed on pods only"),
        (S + "proxyCpu", "1", "did you mean"),
        (S + "inject", "true", "label the namespace istio-injection=enabled"),
    ],
)
def test_a_bad_annotation_of_the_namespace_is_told_as_its_own(key: str, value: str, said: str) -> None:
    _, problems = resolve({}, {key: value})
    assert len(problems) == 1
    assert f"for namespace annotation {key!r}" in problems[0]
    assert said in problems[0]


def test_two_names_of_one_option() -> None:
    both = {"istio.io/reroute-virtual-interfaces": "a", T + "kubevirtInterfaces": "b"}
    assert "it means the same as 'istio.io/reroute-virtual-interfaces'" in resolve(both)[1][0]
    old, new = T + "kubevirtInterfaces", "istio.io/reroute-virtual-interfaces"
    assert resolve({old: "b"}, {new: "a"})[0].reroute_interfaces == ("b",)


@pytest.mark.parametrize(
    ("pod", "bad"),
    [
        ({S + "proxyCPU": "3"}, True),
        ({S + "proxyCPU": "3", S + "proxyCPULimit": "4"}, False),
        ({S + "proxyMemory": "2Gi"}, True),
        ({S + "proxyMemoryLimit": "100Mi"}, True),
        ({S + "proxyCPULimit": "0"}, False),
        ({S + "proxyMemory": "1024Mi"}, False),
    ],
)
def test_requests_stay_below_limits(pod: dict[str, str], bad: bool) -> None:
    """A limit of zero is no limit."""
    problems = resolve(pod)[1]
    assert bool(problems) is bad
    assert all("request is above the limit" in problem for problem in problems)


def test_the_committed_page_is_generated() -> None:
    path = Path(__file__).resolve().parents[4] / "docs" / "annotations.md"
    difference = difflib.unified_diff(
        path.read_text().splitlines(), reference_page().splitlines(), lineterm=""
    )
    assert not (text := "\n".join(difference)), f"{text}\nrun `make docs`"


def test_every_meaning_is_a_sentence_part() -> None:
    for option in OPTIONS:
        assert option.meaning
        assert not option.meaning.endswith(".")
        assert "|" not in option.meaning + option.kind, "it stands in a table"
