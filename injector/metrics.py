"""Metrics of the injector. Label values come from closed sets: outcomes, reason codes, names of parts."""

from __future__ import annotations

from typing import Final

from mesh.obs.metrics import MetricSet, counter, gauge, histogram

_SECONDS: Final = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0
)  # fmt: skip
_BYTES: Final = (256.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0, 262144.0)


class WebhookMetrics(MetricSet):
    """Everything that `/metrics` of the webhook shows; docs/reference/metrics.md lists it."""

    admissions = counter(
        "gatehouse_injector_admissions_total",
        "Requests by what became of them; `failed` means that failurePolicy was applied.",
        labels=("outcome", "reason"),
    )
    duration = histogram(
        "gatehouse_injector_admission_duration_seconds",
        "Time from the arrival of a request at the process to its answer.",
        buckets=_SECONDS,
    )
    patch = histogram("gatehouse_injector_patch_bytes", "Size of patches before base64.", buckets=_BYTES)
    dry_runs = counter("gatehouse_injector_dry_runs_total", "Requests that were dry runs.")
    policies = counter(
        "gatehouse_injector_policy_admissions_total",
        "Requests about policies by what became of them; `failed` means that failurePolicy was applied.",
        labels=("outcome", "reason"),
    )
    policy_duration = histogram(
        "gatehouse_injector_policy_admission_duration_seconds",
        "Time from the arrival of a request about a policy at the process to its answer.",
        buckets=_SECONDS,
    )
    config_generation = gauge(
        "gatehouse_injector_config_generations", "Configurations taken over since the start.", across="max"
    )
    config_good = gauge(
        "gatehouse_injector_config_ready",
        "1 when the configuration in force is the one in the file, 0 when that one was refused.",
        across="min",
    )
    config_reloads = counter(
        "gatehouse_injector_config_reloads_total", "Times that the file had changed.", labels=("result",)
    )
    certificate_expiry = gauge(
        "gatehouse_injector_serving_cert_expiry_timestamp_seconds",
        "When the webhook's certificate ends, Unix time; 0 while there is none.",
        across="min",
    )
    certificate_loads = counter(
        "gatehouse_injector_serving_cert_loads_total", "Times that the pair had changed.", labels=("result",)
    )
    bundle_mismatch = gauge(
        "gatehouse_injector_ca_bundle_mismatched_entries",
        "Entries of webhook configurations whose caBundle does not verify the certificate served here.",
        across="max",
    )
    namespaces = gauge("gatehouse_injector_namespaces", "Namespaces in the cache.", across="max")
    watch_failures = counter(
        "gatehouse_injector_watch_failures_total", "Watches that failed.", labels=("resource", "code")
    )
    events = counter("gatehouse_injector_events_total", "Events by what became of them.", labels=("result",))
    ready = gauge("gatehouse_injector_ready", "1 when the worker is ready, else 0.", across="min")


class CaptureMetrics(MetricSet):
    """What `/metrics` of the capture agent shows, beside its certificate's."""

    tries = counter(
        "gatehouse_capture_tries_total",
        "Looks at the rules of a pod: `applied`, `unchanged`, or the code of what failed.",
        labels=("result",),
    )
    duration = histogram(
        "gatehouse_capture_duration_seconds",
        "Time that the capture worker took for a pod.",
        buckets=_SECONDS,
    )
    wait = histogram(
        "gatehouse_capture_wait_seconds",
        "Time from when the agent saw that a pod wants rules to when they were in force.",
        buckets=(*_SECONDS, 30.0, 60.0),
    )
    pods = gauge("gatehouse_capture_pods", "Pods of this node whose rules the agent writes.")
    waiting = gauge(
        "gatehouse_capture_waiting_pods",
        "Those of them that have a sandbox, and whose rules are not in force.",
    )
    watch_failures = counter(
        "gatehouse_capture_watch_failures_total", "Watches that failed.", labels=("resource", "code")
    )
    events = counter("gatehouse_capture_events_total", "Events by what became of them.", labels=("result",))


class UpkeepMetrics(MetricSet):
    """Everything that `/metrics` of the certificate keeper and of upkeep shows."""

    leader = gauge("gatehouse_injector_leader_ready", "1 in the process that holds the Lease.")
    runs = counter("gatehouse_injector_upkeep_total", "Runs of a part of upkeep.", labels=("part", "result"))
    last_success = gauge(
        "gatehouse_injector_upkeep_last_success_timestamp_seconds",
        "When a part of upkeep last succeeded, Unix time.",
        labels=("part",),
    )
    certificate_expiry = gauge(
        "gatehouse_injector_kept_cert_expiry_timestamp_seconds",
        "When the certificate that was written last ends, Unix time.",
    )
    renewals = counter(
        "gatehouse_injector_cert_renewals_total", "Certificates asked for.", labels=("result",)
    )
    bundle_mismatch = gauge(
        "gatehouse_injector_published_ca_bundle_mismatched_entries",
        "Entries of webhook configurations whose caBundle did not verify the service by a TLS call.",
    )
    bundle_roots = gauge("gatehouse_injector_published_ca_bundle_roots", "Roots in the caBundle.")
    bundle_patches = counter(
        "gatehouse_injector_ca_bundle_patches_total", "Changes of a caBundle.", labels=("result",)
    )
    jwks_fetches = counter(
        "gatehouse_injector_jwks_fetches_total", "Fetches of key sets.", labels=("result",)
    )
    jwks_sets = gauge("gatehouse_injector_jwks_sets", "Key sets that are published.")
    jwks_stale = gauge(
        "gatehouse_injector_jwks_stale_sets", "Addresses whose last fetch failed; the last good set is kept."
    )
    policy_writes = counter(
        "gatehouse_injector_policy_conditions_total", "Conditions written on policies.", labels=("result",)
    )
    refused_policies = gauge(
        "gatehouse_injector_refused_policies",
        "Policies in the cluster that are not in force because of their errors; of the leader.",
    )
