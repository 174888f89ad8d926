"""Metrics of the authority. Label values come from closed sets: codes, key kinds, names of parts."""

from __future__ import annotations

from typing import Final

from mesh.obs.metrics import MetricSet, counter, gauge, histogram

_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)


class CaMetrics(MetricSet):
    """Everything that `/metrics` of the authority shows; docs/reference/metrics.md lists it."""

    requests = counter("gatehouse_ca_csr_total", "Requests for a certificate, whatever became of them.")
    issued = counter(
        "gatehouse_ca_certificates_issued_total", "Certificates that were issued.", labels=("key_kind",)
    )
    refused = counter(
        "gatehouse_ca_refused_total",
        "Requests that were refused, by reason code and category.",
        labels=("code", "category"),
    )
    hostile = counter(
        "gatehouse_ca_hostile_total",
        "Refusals that no honest client causes, by reason code.",
        labels=("code",),
    )
    authentication_failures = counter(
        "gatehouse_ca_authentication_failures_total", "Credentials that were refused.", labels=("code",)
    )
    csr_errors = counter(
        "gatehouse_ca_csr_parsing_errors_total", "Certificate requests that were refused.", labels=("code",)
    )
    sign_errors = counter(
        "gatehouse_ca_csr_sign_errors_total", "Certificates that could not be issued.", labels=("code",)
    )
    authenticated = counter(
        "gatehouse_ca_authenticated_total",
        "Callers that were identified, by kind of credential.",
        labels=("method",),
    )
    shed = counter("gatehouse_ca_shed_total", "Requests that a limit refused.", labels=("limit",))
    key_reuse = counter(
        "gatehouse_ca_key_reuse_total", "Certificates issued again for a public key of the same identity."
    )
    duration = histogram(
        "gatehouse_ca_request_duration_seconds",
        "Time from the start of the work on a request to its answer.",
        buckets=_SECONDS,
        labels=("outcome",),
    )
    queue = histogram(
        "gatehouse_ca_queue_duration_seconds", "Time that requests waited for a thread.", buckets=_SECONDS
    )
    in_flight = gauge("gatehouse_ca_in_flight_requests", "Requests that are worked on now.")
    callers = gauge("gatehouse_ca_limited_callers", "Callers that the limiter remembers.")
    reloads = counter(
        "gatehouse_ca_reloads_total",
        "Times that files were read again after a change.",
        labels=("part", "result"),
    )
    root_expiry = gauge(
        "gatehouse_ca_root_cert_expiry_timestamp_seconds", "When the first of the roots ends, Unix time."
    )
    root_left = gauge("gatehouse_ca_root_cert_expiry_seconds", "Life that the first of the roots has left.")
    chain_expiry = gauge(
        "gatehouse_ca_cert_chain_expiry_timestamp_seconds", "When the signing chain ends, Unix time."
    )
    chain_left = gauge("gatehouse_ca_cert_chain_expiry_seconds", "Life that the signing chain has left.")
    chain_life = gauge(
        "gatehouse_ca_cert_chain_lifetime_seconds",
        "Life that the signing chain has in all, from the signing certificate's NotBefore.",
    )
    serving_left = gauge(
        "gatehouse_ca_serving_cert_expiry_seconds", "Life that the serving certificate has left."
    )
    serving_life = gauge(
        "gatehouse_ca_serving_cert_lifetime_seconds", "Life that the serving certificate has in all."
    )
    bundle_roots = gauge("gatehouse_ca_bundle_roots", "Roots in the trust bundle.")
    token_keys = gauge("gatehouse_ca_token_keys", "Public keys that verify tokens.")
    ready = gauge("gatehouse_ca_ready", "1 when the authority is ready to issue, else 0.")
    leader = gauge("gatehouse_ca_leader_info", "1 while this process leads, else 0; on Kubernetes only.")
    live_pods = gauge("gatehouse_ca_live_pods", "Pods that this process knows; on Kubernetes only.")
    watch_events = counter(
        "gatehouse_ca_watch_events_total", "Events that watches brought.", labels=("resource",)
    )
    watch_failures = counter(
        "gatehouse_ca_watch_failures_total", "Lists and watches that failed.", labels=("resource", "code")
    )
    watch_relists = counter(
        "gatehouse_ca_watch_relists_total", "Complete lists that were read.", labels=("resource",)
    )
    watch_silence = gauge(
        "gatehouse_ca_watch_silence_seconds",
        "Time since the API server last said something on a watch.",
        labels=("resource",),
    )
    token_reviews = counter(
        "gatehouse_ca_token_reviews_total",
        "Token reviews: accepted, refused, failed, throttled, or answered from memory (cached, shared).",
        labels=("result",),
    )
    syncs = counter("gatehouse_ca_trust_syncs_total", "Node agents that were told the trust bundle.")
    root_writes = counter(
        "gatehouse_ca_root_config_map_writes_total",
        "Writes of the roots into namespaces: created, repaired or failed.",
        labels=("result",),
    )
    rotation_steps = counter(
        "gatehouse_ca_rotation_steps_total",
        "Steps of rotations of roots that this process took as the leader, or did not: done, forced, refused,"
        " conflict (another replica was faster), failed.",
        labels=("step", "result"),
    )
    rotation_phase = gauge(
        "gatehouse_ca_rotation_phase",
        "1 for the phase of the rotation of roots as this process has read it, else 0; on Kubernetes only.",
        labels=("phase",),
    )
    rotation_phase_age = gauge(
        "gatehouse_ca_rotation_phase_seconds", "Time since that phase began; 0 before the first rotation."
    )
    bundle_generation = gauge(
        "gatehouse_ca_bundle_generation",
        "Number of the trust bundle, which rises with each change; 0 when nobody counts.",
    )
    issuer_epoch = gauge(
        "gatehouse_ca_issuer_epoch",
        "Number of the signing root, which rises with each rotation; 0 when nobody counts.",
    )
    agents_expected = gauge(
        "gatehouse_ca_agents_expected", "Node agents that should report; 0 where this process does not lead."
    )
    agents_acked = gauge(
        "gatehouse_ca_agents_acked",
        "Node agents all of whose proxies have acknowledged the roots; 0 where this process does not lead.",
    )
    agents_outdated = gauge(
        "gatehouse_ca_agents_outdated_workloads",
        "Workloads with a certificate of a former root; 0 where this process does not lead.",
    )
    namespaces = gauge("gatehouse_ca_root_namespaces", "Namespaces that should have the roots.")
    namespaces_wrong = gauge(
        "gatehouse_ca_root_wrong_namespaces", "Namespaces that do not have the roots as they are now."
    )
