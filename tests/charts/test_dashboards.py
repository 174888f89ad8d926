"""Dashboards are what Grafana can read, name what processes show, and are not empty."""

from __future__ import annotations

import http.server
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from ca.metrics import CaMetrics
from injector.metrics import UpkeepMetrics, WebhookMetrics
from mesh.obs.metrics import MetricSet, describe, exposition, show_process
from nodeagent.kube_watches import KubeMetrics
from nodeagent.metrics import AgentMetrics
from scripts.dashboards.files import DASHBOARDS, files
from tests.fakes.dashboards import Drawn, dashboards, queries
from tests.fakes.helm import CHART, ROOT, render
from tests.fakes.ports import claim_port
from tests.fakes.prometheus import Prometheus, promtool, running

PROCESSES: dict[str, tuple[type[MetricSet], ...]] = {
    "ca": (CaMetrics,),
    "injector": (WebhookMetrics,),
    "upkeep": (UpkeepMetrics,),
    "nodeagent": (AgentMetrics, KubeMetrics),
}
DECLARED = {doc.name: doc for sets in PROCESSES.values() for one in sets for doc in describe(one)}
OF_PROMETHEUS = {"namespace", "pod", "instance", "le"}
OF_PROCESSES = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
SELECTOR = re.compile(r"((?:gatehouse|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
ALL = list(queries())


@pytest.fixture(scope="module", params=sorted(DASHBOARDS))
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dashboards()[request.param]


# ---- what Grafana can read ---------------------------------------------------------------------


def test_the_files_are_what_the_definitions_say() -> None:
    """And there is no other file."""
    wanted = files()
    assert {str(file.relative_to(ROOT)) for file in (CHART / "files" / "dashboards").iterdir()} == set(wanted)
    stale = [name for name, text in wanted.items() if (ROOT / name).read_text() != text]
    assert not stale, f"{stale} are out of date; next: make docs"


def test_addresses_and_titles_are_all_different() -> None:
    found = dashboards().values()
    for key in ("uid", "title"):
        assert len({item[key] for item in found}) == len(DASHBOARDS) == 3
    assert all(re.fullmatch(r"[a-z-]{1,40}", item["uid"]) for item in found)
    assert all(item["id"] is None for item in found), "Grafana chooses it"


def test_panels_have_numbers_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 15
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, f"{panel['title']} is over {taken[cell]} at {cell}"
            taken[cell] = panel["title"]
    rows = {y for _, y in taken}
    assert rows == set(range(max(rows) + 1)), "no gap"


def test_the_form_is_that_of_the_schema(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] == 39
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names == ["datasource", "namespace", "pod"]
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            assert panel["panels"] == [], "an open row has its panels beside it"
            continue
        assert panel["type"] in {"stat", "timeseries", "table"}
        assert panel["datasource"] == source
        assert len(panel["description"]) > 10, panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])])
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert target["instant"] is not target["range"]
        steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert steps[0] is None
        assert steps[1:] == sorted(steps[1:])
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)


# ---- what the processes show -------------------------------------------------------------------


@pytest.mark.parametrize("query", ALL, ids=str)
def test_a_query_is_about_metrics_and_labels_of_ours(query: Drawn) -> None:
    asked = SELECTOR.findall(query.expr)
    assert asked
    known = set(OF_PROMETHEUS)
    for name, selector in asked:
        base = name.removesuffix("_bucket")
        assert base in DECLARED or base in OF_PROCESSES, name
        own = set(DECLARED[base].labels) if base in DECLARED else set()
        known |= own
        if name.endswith("_bucket"):
            assert DECLARED[base].kind == "histogram"
        used = set(re.findall(r"([a-z_]+)(?:=~|!~|!=|=)", selector))
        assert {"namespace"} <= used <= own | OF_PROMETHEUS, f"{name}: {used}"
    assert _words(r"(?:by|on) \(([a-z_, ]*)\)", query.expr) <= known
    left = _words(r"by \(([a-z_, ]*)\)", query.expr) | ({"pod"} if "and on" in query.expr else set())
    assert set(re.findall(r"\{\{([a-z_]+)\}\}", query.legend)) <= left


def _words(pattern: str, text: str) -> set[str]:
    """Members of lists that are separated by commas."""
    return {word.strip() for found in re.findall(pattern, text) for word in found.split(",")} - {""}


@pytest.mark.parametrize("query", ALL, ids=str)
def test_counters_are_rates_and_gauges_are_not(query: Drawn) -> None:
    """The rate of a gauge, or a bare counter, is nonsense that Prometheus draws without a word."""
    for name, _ in SELECTOR.findall(query.expr):
        counts = name.endswith(("_total", "_bucket"))
        inside = re.findall(rf"(rate|increase)\({name}[^\[]*\[", query.expr)
        bare = len(re.findall(rf"{name}\b", query.expr)) - len(inside)
        assert (bool(inside), bare == 0) == (counts, counts), name


def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query.filled()} for number, query in enumerate(ALL)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"SUCCESS: {len(ALL)} rules found" in promtool("check", "rules", file)


# ---- what is drawn ------------------------------------------------------------------------------

# Nothing to draw before the first: there is no certificate, no request, no success of upkeep.
EMPTY_AT_FIRST = {
    "Least life left of a workload",
    "Certificates issued",
    "Workloads that are next to expire",
    "Life left of workloads' certificates",
    "Least life left by node",
    "Silence of the API server",
    "Time for a request",
    "Key sets were seen to",
    "Time since each part last succeeded",
}
SAID = {
    "outcome": ("failed", "skipped"),
    "result": ("ok", "failed"),
    "part": ("jwks",),
    "severity": ("error",),
    "api": ("ads",),
}
_HAPPENS: dict[str, Callable[[Any], None]] = {
    "counter": lambda child: child.inc(),
    "gauge": lambda child: child.set(1),
    "histogram": lambda child: child.observe(0.004),
}
_SECONDS = 40.0


class Page:
    """`/metrics` of a process that has just begun, or of one to which everything happens at each scrape."""

    def __init__(self, sets: tuple[type[MetricSet], ...], *, busy: bool, processes: bool) -> None:
        self.registry = CollectorRegistry()
        self.sets = [one(self.registry) for one in sets]
        self.busy = busy
        if processes:
            show_process(self.registry)

    def text(self) -> bytes:
        if self.busy:
            for metric in (metric for one in self.sets for metric in one.metrics.values()):
                _happen(metric)
        return exposition(self.registry)[0]


def _happen(metric: Any) -> None:
    names = metric._labelnames
    for values in itertools.product(*(SAID.get(name, (f"a-{name}",)) for name in names)):
        _HAPPENS[metric._type](metric.labels(*values) if names else metric)


@pytest.fixture(params=[False, True], ids=["begun", "busy"])
def scraped(
    request: pytest.FixtureRequest, tmp_path: Path, socket_enabled: None
) -> Iterator[tuple[bool, Prometheus]]:
    """Whether the processes are busy, and a Prometheus that scrapes them."""
    pages = {
        f"/{name}": Page(sets, busy=request.param, processes=name != "injector")
        for name, sets in PROCESSES.items()
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages[self.path].text()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    port = claim_port()
    server = http.server.HTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    jobs = [
        {
            "job_name": name[1:],
            "metrics_path": name,
            "scrape_interval": "500ms",
            "scrape_timeout": "400ms",
            "static_configs": [
                {
                    "targets": [f"127.0.0.1:{port}"],
                    "labels": {"namespace": "istio-system", "pod": f"{name[1:]}-0"},
                }
            ],
        }
        for name in pages
    ]
    try:
        with running(tmp_path, yaml.safe_dump({"scrape_configs": jobs})) as prometheus:
            yield request.param, prometheus
    finally:
        server.shutdown()
        server.server_close()


def settled(look: Callable[[], Any], wanted: object) -> object:
    """What is seen once it is the wanted, or when the time is over."""
    ends = time.monotonic() + _SECONDS
    while (found := look()) != wanted and time.monotonic() < ends:
        time.sleep(0.2)
    return found


@pytest.mark.timeout(180)
def test_no_panel_is_empty(scraped: tuple[bool, Prometheus]) -> None:
    """In the words of a real Prometheus that scrapes real declarations. NaN is drawn as nothing, too."""
    busy, prometheus = scraped

    def empty() -> set[str]:
        return {query.panel for query in ALL if not prometheus.query(query.filled())}

    def nothing() -> set[str]:
        return {
            query.panel
            for query in ALL
            if not [item for item in prometheus.query(query.filled()) if item["value"][1] != "NaN"]
        }

    wanted = set() if busy else EMPTY_AT_FIRST
    assert settled(nothing if busy else empty, wanted) == wanted


@pytest.mark.timeout(180)
def test_the_choices_are_the_pods_of_the_dashboard(
    scraped: tuple[bool, Prometheus],
) -> None:
    _, prometheus = scraped
    for name, pod in (("identities", "ca-0"), ("injection", "injector-0"), ("nodeagents", "nodeagent-0")):
        variables = {item["name"]: item for item in dashboards()[name]["templating"]["list"]}
        for label, wanted in (("namespace", "istio-system"), ("pod", pod)):
            asked = re.fullmatch(r"label_values\((.+), ([a-z]+)\)", variables[label]["definition"])
            assert asked
            assert asked[2] == label
            selector = asked[1].replace("$namespace", "istio-system")
            found = settled(partial(prometheus.label_values, label, selector), [wanted])
            assert found == [wanted]


# ---- what the chart makes of them ---------------------------------------------------------------


def test_a_config_map_for_each_of_them() -> None:
    chart = render(
        values={
            "metrics": {"dashboards": {"enabled": True, "annotations": {"grafana_folder": "Mesh"}}},
            "commonAnnotations": {"owner": "platform"},
        }
    )
    for name in DASHBOARDS:
        made = chart.one("ConfigMap", f"gatehouse-dashboard-{name}")
        assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert made["metadata"]["annotations"] == {"grafana_folder": "Mesh", "owner": "platform"}
        (key,) = made["data"]
        assert key == f"gatehouse-{name}.json"
        assert yaml.safe_load(made["data"][key]) == dashboards()[name], "legends are no templates"
        assert len(made["data"][key]) < 512 << 10, (
            "a ConfigMap holds 1 MiB, and kubectl apply half of it twice"
        )


def test_labels_can_be_others_and_nothing_is_made_by_default() -> None:
    values = {"metrics": {"dashboards": {"enabled": True, "labels": {"grafana_dashboard": "mesh"}}}}
    made = render(values=values).one("ConfigMap", "gatehouse-dashboard-identities")
    assert made["metadata"]["labels"]["grafana_dashboard"] == "mesh"
    assert not [item for item in render().objects if "dashboard" in item["metadata"]["name"]]
