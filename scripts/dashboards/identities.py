"""The dashboard of certificates: who gets them, who does not, when they end."""

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
    table,
)
from scripts.dashboards.parts import (
    AGENT,
    AGENT_UP,
    ANY_IS_ORANGE,
    CA,
    CA_UP,
    DAY,
    NONE_IS_RED,
    memory,
    processor,
    recent,
    share_left,
)

IDENTITIES: Final = Dashboard(
    uid="gatehouse-identities",
    title="Gatehouse: identities",
    about="Certificates: who gets them, who does not, when they end. Pod chooses among the authority's.",
    pods=CA_UP,
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Authorities ready",
                    f"sum({CA_UP}{{$own}})",
                    "At 0 no certificate is issued: running pods go on, new ones wait. Look at the log of "
                    "the deployment gatehouse-ca.",
                    steps=NONE_IS_RED,
                ),
                stat(
                    "Least life left of a workload",
                    f"min({share_left()})",
                    "Share of its certificate's whole life. A healthy one is renewed with 40 % left at the "
                    "latest; the table below "
                    "names the workloads, the log of their node's agent has the reason.",
                    unit="percentunit",
                    steps=((None, "red"), (0.25, "orange"), (0.35, "green")),
                ),
                stat(
                    "Failed renewals, 15 min",
                    recent(f"{AGENT}_renew_failures_total", AGENT_UP, "$all"),
                    "Attempts of node agents that gave no certificate. They try again; the panel below has "
                    "the codes.",
                    steps=ANY_IS_ORANGE,
                ),
                stat(
                    "Signing chain ends in",
                    f"min({CA}_cert_chain_expiry_seconds{{$own}})",
                    "Nothing is issued after it, and nothing outlives it. An intermediate of ours is "
                    "renewed by itself when a third of "
                    "its life is left; your own (ca.existingSecret) by whoever made it.",
                    unit="s",
                    steps=((None, "red"), (7 * DAY, "orange"), (30 * DAY, "green")),
                ),
                stat(
                    "Root ends in",
                    f"min({CA}_root_cert_expiry_seconds{{$own}})",
                    "The first of the roots. The authority replaces one of its own 30 days ahead; a CA of "
                    "yours is yours to replace: docs/rotation.md.",
                    unit="s",
                    steps=((None, "red"), (30 * DAY, "orange"), (90 * DAY, "green")),
                ),
                stat(
                    "Authority's own certificate",
                    f"min({CA}_serving_cert_expiry_seconds{{$own}} / "
                    f"{CA}_serving_cert_lifetime_seconds{{$own}})",
                    "Share of its life that is left; renewed at half. When it ends, no node agent can "
                    "connect.",
                    unit="percentunit",
                    steps=((None, "red"), (0.25, "orange"), (0.45, "green")),
                ),
            ),
        ),
        Row(
            "Requests",
            (
                graph(
                    "Certificates issued",
                    "By kind of key, per second. Each pod asks at its start and at half of each "
                    "certificate's life.",
                    Query(
                        f"sum by (key_kind) (rate({CA}_certificates_issued_total{{$own}}[{RATE}]))",
                        "{{key_kind}}",
                    ),
                    unit="ops",
                ),
                graph(
                    "Requests refused",
                    "By code. docs/ca.md says what each means; the audit lines (decision=refused) say who "
                    "asked.",
                    rate_by("code", f"{CA}_refused_total", CA_UP),
                    unit="ops",
                ),
                graph(
                    "Requests that no honest client makes",
                    "By code. Somebody tries: the audit lines with hostile=true have the caller and where "
                    "it called from.",
                    rate_by("code", f"{CA}_hostile_total", CA_UP),
                    unit="ops",
                ),
                graph(
                    "Certificates that could not be issued",
                    "By code: faults of the authority, never of the caller. Its log has the detail.",
                    rate_by("code", f"{CA}_csr_sign_errors_total", CA_UP),
                    unit="ops",
                ),
                graph(
                    "Callers identified",
                    "By kind of credential. Node agents come with the tokens of pods.",
                    rate_by("method", f"{CA}_authenticated_total", CA_UP),
                    unit="ops",
                ),
                graph(
                    "Credentials refused",
                    "By code. Many of one code at once: clocks, the cluster's token keys, or an audience "
                    "that changed.",
                    rate_by("code", f"{CA}_authentication_failures_total", CA_UP),
                    unit="ops",
                ),
                graph(
                    "Token reviews",
                    "Answers of the API server about tokens, with ca.tokenReview only. `failed` and "
                    "`throttled` hold certificates up.",
                    rate_by("result", f"{CA}_token_reviews_total", CA_UP),
                    unit="ops",
                ),
                graph(
                    "Turned away by a limit",
                    "By limit. More replicas, or a look at who asks so much: gatehouse_ca_limited_callers "
                    "and the audit lines.",
                    rate_by("limit", f"{CA}_shed_total", CA_UP),
                    unit="ops",
                ),
                graph(
                    "Time for a request",
                    "From the start of the work to the answer, and the wait for a thread before it.",
                    *quantiles(f"{CA}_request_duration_seconds"),
                    Query(
                        "histogram_quantile(0.99, sum by (le) "
                        f"(rate({CA}_queue_duration_seconds_bucket{{$own}}[{RATE}])))",
                        "99 % of the waits within",
                    ),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Workloads",
            (
                table(
                    "Workloads that are next to expire",
                    "Seconds until the certificate ends. Negative: it has ended, and peers refuse the "
                    "workload.",
                    Query(
                        f"sort(bottomk(10, min by (workload, pod) ({AGENT}_svid_remaining_seconds{{$all}})))"
                    ),
                    unit="s",
                ),
                graph(
                    "Life left of workloads' certificates",
                    "Share of the whole life: the worst, and the middle one. A saw between 100 % and 40 % "
                    "is healthy.",
                    Query(f"min({share_left()})", "least"),
                    Query(f"quantile(0.5, {share_left()})", "half of them at least"),
                    unit="percentunit",
                ),
                graph(
                    "Renewals that failed",
                    "By code, as the node agents see it. ca_unreachable: the authority or the network; "
                    "svid_* and reply_*: an authority "
                    "that sends wrong certificates.",
                    rate_by("code", f"{AGENT}_renew_failures_total", AGENT_UP, "$all"),
                    unit="ops",
                ),
                graph(
                    "Time for a renewal",
                    "From a new key to the published certificate, on the nodes.",
                    *quantiles(f"{AGENT}_renew_seconds", "$all"),
                    unit="s",
                ),
                graph(
                    "Namespaces without the roots",
                    "Pods with a sidecar wait there for the ConfigMap istio-ca-root-cert. The log of the "
                    "authority that leads has the reason.",
                    Query(f"max({CA}_root_wrong_namespaces{{$own}})", "namespaces"),
                ),
                graph(
                    "Silence of the API server",
                    "Time since it last said something to the authority. Pods that are deleted meanwhile "
                    "still count as alive.",
                    Query(f"max by (resource) ({CA}_watch_silence_seconds{{$own}})", "{{resource}}"),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Rotation of roots",
            (
                graph(
                    "Phase",
                    "1 for the present one; docs/rotation.md has what each means, `meshctl ca status` what "
                    "is waited for. Two at once: a replica has not read the Secret yet, or cannot.",
                    state_by("phase", f"max by (phase) ({CA}_rotation_phase{{$own}}) > 0", CA_UP),
                ),
                graph(
                    "Node agents that have acknowledged the roots",
                    "Below the number expected, a rotation waits: `meshctl ca status` names who is missing.",
                    Query(f"max({CA}_agents_expected{{$own}})", "expected"),
                    Query(f"max({CA}_agents_acked{{$own}})", "acknowledged"),
                ),
                graph(
                    "Workloads that are behind",
                    "Their proxy has not taken the roots; their certificate is of a former root. Both fall "
                    "to 0 before the former root goes.",
                    Query(f"sum({AGENT}_bundle_pending_workloads{{$all}})", "roots not taken"),
                    Query(f"sum({AGENT}_outdated_workloads{{$all}})", "certificate of a former root"),
                ),
                graph(
                    "Generation and epoch",
                    "The generation rises with each change of the roots, the epoch with each new signing "
                    "root. The last agent follows within minutes.",
                    Query(f"max({CA}_bundle_generation{{$own}})", "generation"),
                    Query(f"max({CA}_issuer_epoch{{$own}})", "epoch"),
                    Query(f"min({AGENT}_bundle_generation{{$all}})", "generation, last agent"),
                ),
                graph(
                    "Steps",
                    "By result. refused: somebody asked too early; failed: the log of the authority "
                    "that leads has the reason.",
                    rate_by("result", f"{CA}_rotation_steps_total", CA_UP),
                    unit="ops",
                ),
                graph(
                    "Calls for the roots",
                    "By result, as the node agents see it: ok, or a code (docs/nodeagent.md). Each asks once "
                    "a minute.",
                    rate_by("result", f"{AGENT}_trust_syncs_total", AGENT_UP, "$all"),
                    unit="ops",
                ),
            ),
        ),
        Row("Processes", (memory(CA_UP), processor(CA_UP))),
    ),
)
