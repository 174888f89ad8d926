"""Dashboards of Grafana as values, and the JSON that Grafana imports (schema version 39: 10.4 and newer).

A dashboard is rows of panels; places are computed, so panels cannot overlap. In expressions `$own` stands for
the matchers of the dashboard's own pods and `$all` for those of the namespace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

Json = dict[str, Any]
Kind = Literal["stat", "timeseries", "table"]
SCHEMA_VERSION: Final = 39
COLUMNS: Final = 24
SOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
RATE: Final = "$__rate_interval"
_ALL: Final = 'namespace=~"$namespace"'
_OWN: Final = f'{_ALL},pod=~"$pod"'
_HEIGHTS: Final[dict[Kind, int]] = {"stat": 4, "timeseries": 8, "table": 8}


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and the name of its series; `{{label}}` is replaced by Grafana."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        about: what it means and what to do when it looks bad; shown behind the title.
        unit: of Grafana's list: `s`, `ops`, `percentunit`, `bytes`, `short`.
        width: of 24 columns.
        steps: colours from a value on, ascending; the first is for everything below.
    """

    kind: Kind
    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    width: int = 8
    steps: tuple[tuple[float | None, str], ...] = ((None, "green"),)


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """One page.

    Attributes:
        uid: part of its address; never changed.
        pods: a metric that each of its own pods has; the choice of pods is read off it.
    """

    uid: str
    title: str
    about: str
    pods: str
    rows: tuple[Row, ...]


def stat(title: str, expr: str, about: str, **more: Any) -> Panel:
    """One number."""
    return Panel(
        kind="stat", title=title, about=about, queries=(Query(expr),), width=more.pop("width", 4), **more
    )


def graph(title: str, about: str, *queries: Query, **more: Any) -> Panel:
    """Lines over time."""
    return Panel(kind="timeseries", title=title, about=about, queries=queries, **more)


def table(title: str, about: str, query: Query, **more: Any) -> Panel:
    """The series of one moment, a line each."""
    return Panel(kind="table", title=title, about=about, queries=(query,), **more)


def rate_by(label: str, metric: str, base: str, matchers: str = "$own") -> Query:
    """Rates by a label whose values appear with the first event; a line `none` at 0 until then.

    Args:
        base: a metric that the same processes always have. Without it nothing is drawn: no data is not 0.
    """
    rates = f"sum by ({label}) (rate({metric}{{{matchers}}}[{RATE}])) > 0"
    return Query(f"{rates} or on () {zero(base, matchers, label)}", f"{{{{{label}}}}}")


def state_by(label: str, expression: str, base: str) -> Query:
    """A gauge by a label; as `rate_by` where there is no value of it yet."""
    return Query(f"{expression} or on () {zero(base, label=label)}", f"{{{{{label}}}}}")


def zero(base: str, matchers: str = "$own", label: str = "") -> str:
    """0 where the processes report at all, else nothing; with a label, a series that has `none` for it."""
    own = ",".join(part for part in matchers.split(",") if part in ("$own", "$all"))
    value = f"0 * sum({base}{{{own}}})"
    return f'label_replace({value}, "{label}", "none", "", "")' if label else value


def quantiles(metric: str, matchers: str = "$own", prefix: str = "") -> tuple[Query, Query]:
    """Median and 99th percentile of a histogram."""
    rates = f"sum by (le) (rate({metric}_bucket{{{matchers}}}[{RATE}]))"
    median, tail = (f"histogram_quantile({share}, {rates})" for share in ("0.5", "0.99"))
    return Query(median, f"{prefix}half within"), Query(tail, f"{prefix}99 % within")


def render(dashboard: Dashboard) -> str:
    """The file."""
    return json.dumps(_dashboard(dashboard), indent=1) + "\n"


def _dashboard(dashboard: Dashboard) -> Json:
    return {
        "annotations": {"list": [_ALERTS]},
        "description": dashboard.about,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,  # one cursor in all panels
        "id": None,
        "links": [_OTHERS],
        "liveNow": False,
        "panels": list(_panels(dashboard)),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["gatehouse"],
        "templating": {"list": _variables(dashboard)},
        "time": {"from": "now-3h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": dashboard.title,
        "uid": dashboard.uid,
        "version": 1,
        "weekStart": "",
    }


_ALERTS: Final[Json] = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}
_OTHERS: Final[Json] = {
    "asDropdown": False,
    "icon": "external link",
    "includeVars": False,
    "keepTime": True,
    "tags": ["gatehouse"],
    "targetBlank": False,
    "title": "",
    "tooltip": "",
    "type": "dashboards",
    "url": "",
}


def _variables(dashboard: Dashboard) -> list[Json]:
    source: Json = {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }
    namespaces = f"label_values({dashboard.pods}, namespace)"
    pods = f"label_values({dashboard.pods}{{{_ALL}}}, pod)"
    return [source, _choice("namespace", "Namespace", namespaces), _choice("pod", "Pod", pods)]


def _choice(name: str, label: str, query: str) -> Json:
    return {
        "allValue": ".*",  # also where Prometheus does not set the label
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": SOURCE,
        "definition": query,
        "hide": 0,
        "includeAll": True,
        "label": label,
        "multi": True,
        "name": name,
        "options": [],
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }


def _panels(dashboard: Dashboard) -> Iterator[Json]:
    """Left to right and downwards; the rows' headings are panels too."""
    number, top = 1, 0
    for row in dashboard.rows:
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {
            "collapsed": False,
            "gridPos": place,
            "id": number,
            "panels": [],
            "title": row.title,
            "type": "row",
        }
        number, top = number + 1, top + 1
        left = line = 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, line = 0, top + line, 0
            height = _HEIGHTS[panel.kind]
            place = {"h": height, "w": panel.width, "x": left, "y": top}
            yield _panel(panel, number, place)
            number, left, line = number + 1, left + panel.width, max(line, height)
        top += line


def _panel(panel: Panel, number: int, place: dict[str, int]) -> Json:
    instant = panel.kind != "timeseries"
    return {
        "datasource": SOURCE,
        "description": panel.about,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "gridPos": place,
        "id": number,
        "options": _OPTIONS[panel.kind],
        "targets": [_target(query, index, panel, instant) for index, query in enumerate(panel.queries)],
        "title": panel.title,
        "type": panel.kind,
        **({"transformations": _TABLE} if panel.kind == "table" else {}),
    }


def _target(query: Query, index: int, panel: Panel, instant: bool) -> Json:
    return {
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr.replace("$own", _OWN).replace("$all", _ALL),
        "format": "table" if panel.kind == "table" else "time_series",
        "instant": instant,
        "legendFormat": query.legend or "__auto",
        "range": not instant,
        "refId": chr(ord("A") + index),
    }


def _defaults(panel: Panel) -> Json:
    steps = [{"color": colour, "value": value} for value, colour in panel.steps]
    defaults: Json = {
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "mappings": [],
        "thresholds": {"mode": "absolute", "steps": steps},
        "unit": panel.unit,
    }
    if panel.kind == "timeseries":
        defaults |= {"custom": _LINES, "min": 0}
    elif panel.unit == "short":
        defaults["decimals"] = 0  # an increase is extrapolated: 1 may come out as 1.07
    return defaults


_LINES: Final[Json] = {
    "axisPlacement": "auto",
    "drawStyle": "line",
    "fillOpacity": 10,
    "lineInterpolation": "linear",
    "lineWidth": 1,
    "pointSize": 4,
    "showPoints": "auto",
    "spanNulls": False,
    "stacking": {"group": "A", "mode": "none"},
}
_OPTIONS: Final[dict[Kind, Json]] = {
    "timeseries": {
        "legend": {
            "calcs": ["lastNotNull", "max"],
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "background",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    },
    "table": {"cellHeight": "sm", "footer": {"show": False}, "showHeader": True},
}
_TABLE: Final[list[Json]] = [
    {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {}}}
]
