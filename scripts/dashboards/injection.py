"""The dashboard of the webhooks, and of upkeep behind them."""

from __future__ import annotations

from typing import Final

from scripts.dashboards.grafana import Dashboard, Query, Row, graph, quantiles, rate_by, stat
from scripts.dashboards.parts import ANY_IS_RED, HOOK, HOOK_UP, NONE_IS_RED, UPKEEP_UP, recent

_BOTH_MISMATCHES = " or ".join(
    f"max({HOOK}_{name}{{$all}})"
    for name in ("ca_bundle_mismatched_entries", "published_ca_bundle_mismatched_entries")
)

INJECTION: Final = Dashboard(
    uid="gatehouse-injection",
    title="Gatehouse: injection and policies",
    about="The webhooks, and upkeep behind them. Pod chooses among the webhook's.",
    pods=HOOK_UP,
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Webhooks ready",
                    f"sum({HOOK_UP}{{$own}})",
                    "At 0 no pod of a labelled namespace can be made (failurePolicy Fail). /readyz and the "
                    "log say what is missing.",
                    steps=NONE_IS_RED,
                ),
                stat(
                    "Without an answer, 15 min",
                    recent(f"{HOOK}_admissions_total", HOOK_UP, '$own,outcome="failed"'),
                    "Admissions that the API server decided by failurePolicy. The panel below has the "
                    "reasons.",
                    steps=ANY_IS_RED,
                ),
                stat(
                    "Webhook's certificate ends in",
                    f"min({HOOK}_serving_cert_expiry_timestamp_seconds{{$own}}) - time()",
                    "Renewed half-way by the container certificate of the injector; its log says why not.",
                    unit="s",
                    steps=((None, "red"), (300, "orange"), (3600, "green")),
                ),
                stat(
                    "caBundle not trusted",
                    f"max({HOOK}_ca_bundle_mismatched_entries{{$own}})",
                    "Entries of webhook configurations that do not verify the certificate: the API server "
                    "will refuse the webhook. "
                    "Somebody else writes the field (GitOps), or upkeep cannot.",
                    steps=ANY_IS_RED,
                ),
                stat(
                    "Policies not in force",
                    f"max({HOOK}_refused_policies{{$all}})",
                    "Stored policies with errors: somebody believes in a rule that does not hold. `meshctl "
                    "check` lists them.",
                    steps=ANY_IS_RED,
                ),
                stat(
                    "Key sets were seen to",
                    f'time() - max({HOOK}_upkeep_last_success_timestamp_seconds{{$all,part="jwks"}})',
                    "Time since the key sets of token issuers were last compared and published.",
                    unit="s",
                    steps=((None, "green"), (600, "orange"), (7200, "red")),
                ),
            ),
        ),
        Row(
            "Admissions",
            (
                graph(
                    "Pods, by outcome",
                    "patched: got a sidecar; unchanged: had it; skipped: left alone, with a reason; denied: "
                    "refused, with a sentence; failed: no answer.",
                    rate_by("outcome", f"{HOOK}_admissions_total", HOOK_UP),
                    unit="ops",
                ),
                graph(
                    "Pods without a sidecar, by reason",
                    "Skipped and denied. docs/injector.md explains each reason; an Event on the pod or its "
                    "owner has the sentence.",
                    rate_by("reason", f"{HOOK}_admissions_total", HOOK_UP, '$own,outcome=~"skipped|denied"'),
                    unit="ops",
                ),
                graph(
                    "No answer, by reason",
                    "review_late, review_slow: too little CPU or too few replicas. review_internal: a fault "
                    "of ours, see the log. "
                    "review_not_json and the like are not from an API server.",
                    rate_by("reason", f"{HOOK}_admissions_total", HOOK_UP, '$own,outcome="failed"'),
                    unit="ops",
                ),
                graph(
                    "Time for a pod",
                    "From the arrival of the request to the answer. The API server waits "
                    "injector.webhook.timeoutSeconds.",
                    *quantiles(f"{HOOK}_admission_duration_seconds"),
                    unit="s",
                ),
                graph(
                    "Policies, by outcome",
                    "allowed, denied, failed. Denials tell the author each field.",
                    rate_by("outcome", f"{HOOK}_policy_admissions_total", HOOK_UP),
                    unit="ops",
                ),
                graph(
                    "Time for a policy",
                    "From the arrival of the request to the answer.",
                    *quantiles(f"{HOOK}_policy_admission_duration_seconds"),
                    unit="s",
                ),
                graph(
                    "Watches that failed",
                    "By kind and code. The webhook goes on with what it knows of namespaces.",
                    rate_by("resource", f"{HOOK}_watch_failures_total", HOOK_UP),
                    unit="ops",
                ),
                graph(
                    "Events",
                    "What became of Events about pods: written, failed; repeated, limited and full were left "
                    "out, which is no harm: they are only for people.",
                    rate_by("result", f"{HOOK}_events_total", HOOK_UP),
                    unit="ops",
                ),
                graph(
                    "Settings in force",
                    "0: a change of the settings was refused, the former ones stay. The log names the field.",
                    Query(f"min by (pod) ({HOOK}_config_ready{{$own}})", "{{pod}}"),
                ),
            ),
        ),
        Row(
            "Upkeep",
            (
                graph(
                    "Time since each part last succeeded",
                    "It looks twice a minute. A line that climbs: the log of the deployment "
                    "gatehouse-upkeep has the reason.",
                    Query(
                        f"time() - max by (part) ({HOOK}_upkeep_last_success_timestamp_seconds{{$all}})",
                        "{{part}}",
                    ),
                    unit="s",
                ),
                graph(
                    "Runs that failed",
                    "By part. What was written before stays in force.",
                    rate_by("part", f"{HOOK}_upkeep_total", UPKEEP_UP, '$all,result!="ok"'),
                    unit="ops",
                ),
                graph(
                    "Leaders",
                    "One process does the work. 0 for long: nobody does; 2: the Lease does not keep them "
                    "apart.",
                    Query(f"sum({UPKEEP_UP}{{$all}})", "leaders"),
                ),
                graph(
                    "Key sets",
                    "Published, and those whose last fetch failed. The last good keys of these stay in "
                    "force; new ones are not known.",
                    Query(f"max({HOOK}_jwks_sets{{$all}})", "published"),
                    Query(f"max({HOOK}_jwks_stale_sets{{$all}})", "stale"),
                ),
                graph(
                    "Fetches of key sets",
                    "By result: a code tells why, and the log of upkeep the address.",
                    rate_by("result", f"{HOOK}_jwks_fetches_total", UPKEEP_UP, "$all"),
                    unit="ops",
                ),
                graph(
                    "Conditions written on policies",
                    "By result. A bucket of 50, then 10 a second.",
                    rate_by("result", f"{HOOK}_policy_conditions_total", UPKEEP_UP, "$all"),
                    unit="ops",
                ),
                graph(
                    "caBundle",
                    "Entries that do not verify, as the webhook and as upkeep see it, and roots in it. Two "
                    "roots while one replaces the other.",
                    Query(_BOTH_MISMATCHES, "do not verify"),
                    Query(f"max({HOOK}_published_ca_bundle_roots{{$all}})", "roots"),
                ),
                graph(
                    "Certificates asked for",
                    "By result; failed: the log of the container certificate has the code.",
                    rate_by("result", f"{HOOK}_cert_renewals_total", UPKEEP_UP, "$all"),
                    unit="ops",
                ),
                graph(
                    "Memory of upkeep",
                    "Resident memory of upkeep and of the certificate keepers.",
                    Query(
                        f"process_resident_memory_bytes{{$all}} and on (namespace, pod, instance) "
                        f"{UPKEEP_UP}{{$all}}",
                        "{{pod}}",
                    ),
                    unit="bytes",
                ),
            ),
        ),
    ),
)
