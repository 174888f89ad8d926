"""The dashboard of the nodes: volumes, streams of proxies, configuration."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.grafana import (
    RATE,
    Dashboard,
    Query,
    Row,
    graph,
    quantiles,
    rate_by,
    stat,
    state_by,
    zero,
)
from scripts.dashboards.parts import (
    AGENT,
    AGENT_UP,
    ANY_IS_RED,
    memory,
    processor,
    recent,
    share_left,
)

AGENTS: Final = Dashboard(
    uid="gatehouse-nodeagents",
    title="Gatehouse: node agents",
    about="What happens on the nodes: volumes, streams of proxies, configuration. One pod is one node.",
    pods=AGENT_UP,
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Agents not ready",
                    f"count({AGENT}_ready{{$own}} < 1) or {zero(f'{AGENT}_ready')}",
                    "New pods of those nodes wait in ContainerCreating. /readyz of the agent says which "
                    "part is missing.",
                    steps=ANY_IS_RED,
                ),
                stat(
                    "Workloads",
                    f"sum({AGENT_UP}{{$own}})",
                    "Pods that the agents serve.",
                ),
                stat(
                    "Workloads without a stream",
                    f'clamp_min(sum({AGENT_UP}{{$own}}) - (sum({AGENT}_streams{{$own,api="ads"}}) or '
                    f"{zero(AGENT_UP)}), 0)",
                    "The proxy starts, it has ended, or there is none: a volume that is used without one.",
                ),
                stat(
                    "Refused by proxies, 1 h",
                    recent(f"{AGENT}_nacks_total", AGENT_UP, span="1h"),
                    "Configuration that a proxy would not take: a fault of ours. It goes on with what it "
                    "had.",
                    steps=ANY_IS_RED,
                ),
                stat(
                    "Errors in documents",
                    f'max({AGENT}_findings{{$own,severity="error"}}) or {zero(AGENT_UP)}',
                    "Policies that cannot be read; their last good form stays in force. The agent's log "
                    "names object and field.",
                    steps=ANY_IS_RED,
                ),
                stat(
                    "Clock furthest from the authority's",
                    f"max(abs({AGENT}_clock_skew_seconds{{$own}}))",
                    "Beyond two minutes new certificates are refused. Look at the node's time service.",
                    unit="s",
                    steps=((None, "green"), (30, "orange"), (60, "red")),
                ),
            ),
        ),
        Row(
            "Proxies",
            (
                graph(
                    "Open streams",
                    "By API: ads (proxies), sds, workload_api (applications). A sudden fall: proxies or the "
                    "agent were restarted.",
                    state_by("api", f"sum by (api) ({AGENT}_streams{{$own}})", AGENT_UP),
                ),
                graph(
                    "Time to push",
                    "From new configuration or a new certificate until its last byte is written. It grows "
                    "when proxies do not read.",
                    *quantiles(f"{AGENT}_push_seconds"),
                    unit="s",
                ),
                graph(
                    "Refused by proxies",
                    "By type. The agent's log has resource and reason; report it.",
                    rate_by("type", f"{AGENT}_nacks_total", AGENT_UP),
                    unit="ops",
                ),
                graph(
                    "Time to compile",
                    "From a change of the cluster to the configuration of all of the node's pods.",
                    *quantiles(f"{AGENT}_compile_seconds"),
                    unit="s",
                ),
                graph(
                    "Configurations made anew",
                    "changed=yes: with another outcome than before.",
                    rate_by("changed", f"{AGENT}_compiled_total", AGENT_UP),
                    unit="ops",
                ),
                graph(
                    "Workloads by node",
                    "Pods that each agent serves.",
                    Query(f"sum by (pod) ({AGENT_UP}{{$own}})", "{{pod}}"),
                ),
            ),
        ),
        Row(
            "Volumes and certificates",
            (
                graph(
                    "Volumes published and taken away",
                    "Answers to the kubelet that were `ok`, by call. Each volume is published again every "
                    "two minutes or so.",
                    rate_by("call", f"{AGENT}_csi_calls_total", AGENT_UP, '$own,result="ok"'),
                    unit="ops",
                ),
                graph(
                    "Volumes refused",
                    "By code. The pod waits in ContainerCreating and its Events have the sentence; "
                    "docs/csi.md explains the codes.",
                    rate_by("result", f"{AGENT}_csi_calls_total", AGENT_UP, '$own,result!="ok"'),
                    unit="ops",
                ),
                graph(
                    "Volumes by node",
                    "Published now.",
                    Query(f"sum by (pod) ({AGENT}_volumes{{$own}})", "{{pod}}"),
                ),
                graph(
                    "Certificates received",
                    "Per second, over the chosen nodes.",
                    Query(f"sum(rate({AGENT}_renewals_total{{$own}}[{RATE}]))", "received"),
                    unit="ops",
                ),
                graph(
                    "Renewals that failed",
                    "By code; tried again with growing pauses.",
                    rate_by("code", f"{AGENT}_renew_failures_total", AGENT_UP),
                    unit="ops",
                ),
                graph(
                    "Least life left by node",
                    "Share of the certificate's whole life; 40 % and more is healthy.",
                    Query(f"min by (pod) ({share_left('$own')})", "{{pod}}"),
                    unit="percentunit",
                ),
            ),
        ),
        Row(
            "Processes",
            (
                memory(AGENT_UP),
                processor(AGENT_UP),
                graph(
                    "Watches that failed",
                    "By kind. While the API server is away the agents go on with what they know.",
                    rate_by("resource", f"{AGENT}_watch_failures_total", AGENT_UP),
                    unit="ops",
                ),
                graph(
                    "Changes from the API server",
                    "By kind, per second. Many changes of endpoints cost CPU on every node.",
                    rate_by("resource", f"{AGENT}_watch_events_total", AGENT_UP),
                    unit="ops",
                ),
                graph(
                    "Objects known",
                    "In the newest complete list, by kind, the most of any node.",
                    state_by(
                        "resource", f"max by (resource) ({AGENT}_watch_listed_objects{{$own}})", AGENT_UP
                    ),
                ),
                graph(
                    "Complete lists",
                    "By kind. More than a few per hour and node: watches break.",
                    rate_by("resource", f"{AGENT}_watch_lists_total", AGENT_UP),
                    unit="ops",
                ),
            ),
        ),
    ),
)
