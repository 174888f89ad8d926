"""Metrics of the node agent; docs/nodeagent.md explains how to read them."""

from __future__ import annotations

from mesh.obs.metrics import MetricSet, counter, gauge, histogram


class AgentMetrics(MetricSet):
    """Labels hold codes, kinds and the names of this node's own workloads, nothing from peers."""

    ready = gauge("gatehouse_agent_ready", "1 when the agent is ready, else 0.")
    workloads = gauge("gatehouse_agent_workloads", "Workloads that this agent serves.")
    svid_remaining = gauge(
        "gatehouse_agent_svid_remaining_seconds",
        "Time to the end of a workload's certificate; negative after it, absent before the first.",
        labels=("workload",),
    )
    svid_age = gauge(
        "gatehouse_agent_svid_age_seconds",
        "Time since NotBefore of a workload's certificate.",
        labels=("workload",),
    )
    renewals = counter("gatehouse_agent_renewals_total", "Certificates received and accepted.")
    renew_failures = counter(
        "gatehouse_agent_renew_failures_total", "Attempts that gave no certificate.", labels=("code",)
    )
    renew_seconds = histogram(
        "gatehouse_agent_renew_seconds",
        "Time from a new key to the published certificate.",
        buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
    )
    clock_skew = gauge(
        "gatehouse_agent_clock_skew_seconds",
        "This machine's clock minus the authority's, at the last reply.",
    )
    bundle_generation = gauge(
        "gatehouse_agent_bundle_generation",
        "Generation of the trust bundle that is handed out; 0 when the authority does not count.",
    )
    pending_workloads = gauge(
        "gatehouse_agent_bundle_pending_workloads",
        "Workloads whose proxy has not acknowledged the trust bundle, or refused it.",
    )
    outdated_workloads = gauge(
        "gatehouse_agent_outdated_workloads", "Workloads with a certificate of a former root."
    )
    trust_syncs = counter(
        "gatehouse_agent_trust_syncs_total",
        "Calls that ask the authority for the trust bundle: ok, or a reason code.",
        labels=("result",),
    )
    trust_sync_age = gauge(
        "gatehouse_agent_trust_sync_age_seconds",
        "Time since the authority last told the trust bundle, or since the start; 0 when nobody asks.",
    )
    compile_seconds = histogram(
        "gatehouse_agent_compile_seconds",
        "Time to turn a change of the directory into configuration for all workloads.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
    )
    compiled = counter(
        "gatehouse_agent_compiled_total", "Workload configurations that were made anew.", labels=("changed",)
    )
    findings = gauge(
        "gatehouse_agent_findings",
        "Remarks about documents and policies now in the directory.",
        labels=("severity",),
    )
    streams = gauge("gatehouse_agent_streams", "Open streams.", labels=("api",))
    push_seconds = histogram(
        "gatehouse_agent_push_seconds",
        "Time from a workload's new configuration or certificate until its last byte is written to a stream.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
    )
    nacks = counter("gatehouse_agent_nacks_total", "Resources that a proxy refused.", labels=("type",))
