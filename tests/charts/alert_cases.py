"""For each alert, series that must raise it and series that must not, in promtool's notation.

`1x60` is 1 for an hour at one sample a minute, `0+2x60` grows by 2 a minute. The clock begins at 0, so that
"in an hour" is 3600.
"""

from __future__ import annotations

from dataclasses import dataclass

_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Case:
    """What happens.

    Attributes:
        fires: series that raise it within `minutes`.
        quiet: lists of series of healthy processes, none of which raise it: at their worst moment.
        labels: of the alert, beside severity.
        minutes: how long the series go on.
    """

    fires: tuple[str, ...]
    quiet: tuple[tuple[str, ...], ...]
    labels: dict[str, str]
    minutes: int = 120


def _flat(name: str, value: float) -> str:
    return f"{name} {value:g}x120"


def _steps(name: str, *values: float, at: int = 60) -> str:
    """The values one after another, each for `at` minutes."""
    return f"{name} " + " ".join(f"{value:g}x{at - 1}" for value in values)


def _grows(name: str, by: float) -> str:
    return f"{name} 0+{by:g}x120"


def _case(
    fires: str | tuple[str, ...], *quiet: str | tuple[str, ...], labels: dict[str, str] | None = None
) -> Case:
    def series(given: str | tuple[str, ...]) -> tuple[str, ...]:
        return (given,) if isinstance(given, str) else given

    return Case(series(fires), tuple(map(series, quiet)), labels or {})


def _pair(left: str, other: str, values: tuple[float, float], labels: str = "") -> tuple[str, str]:
    return _flat(f"{left}{labels}", values[0]), _flat(f"{other}{labels}", values[1])


_CA = "gatehouse_ca_"
_WEBHOOK = "gatehouse_injector_"
_AGENT = "gatehouse_agent_"
_CHAIN = (f"{_CA}cert_chain_expiry_seconds", f"{_CA}cert_chain_lifetime_seconds")
_SERVING = (f"{_CA}serving_cert_expiry_seconds", f"{_CA}serving_cert_lifetime_seconds")
_SVID = (f"{_AGENT}svid_remaining_seconds", f"{_AGENT}svid_age_seconds")
_WEB = '{workload="demo/web"}'
_FAILED = '{{outcome="failed",reason="{}"}}'
_NODE, _OF_NODE = '{instance="node1"}', {"instance": "node1"}
_LATENCY = f"{_WEBHOOK}admission_duration_seconds_bucket"

_ROOT_END = f"{_CA}root_cert_expiry_timestamp_seconds"


def _rotation(
    phase: str,
    seconds: float,
    *,
    expected: float = 3,
    acked: float = 3,
    outdated: float = 0,
    late: tuple[str, float] | None = None,
) -> tuple[str, ...]:
    """What the leader of the authority says in a phase, and another replica.

    Args:
        late: phase, and seconds since it began, of a replica that has not read the step yet.
    """
    leads, other = '{instance="a"}', '{instance="b"}'
    return (
        *_phase("a", phase, seconds),
        *_phase("b", *(late or (phase, seconds))),
        _flat(f"{_CA}agents_expected{leads}", expected),
        _flat(f"{_CA}agents_expected{other}", 0),
        _flat(f"{_CA}agents_acked{leads}", acked),
        _flat(f"{_CA}agents_acked{other}", 0),
        _flat(f"{_CA}agents_outdated_workloads{leads}", outdated),
        _flat(f"{_CA}agents_outdated_workloads{other}", 0),
    )


def _phase(instance: str, phase: str, seconds: float) -> tuple[str, ...]:
    return (
        *(
            _flat(f'{_CA}rotation_phase{{instance="{instance}",phase="{name}"}}', int(name == phase))
            for name in ("stable", "prepared", "active", "tainted", "plugged")
        ),
        _flat(f'{_CA}rotation_phase_seconds{{instance="{instance}"}}', seconds),
    )


CASES: dict[str, Case] = {
    "GatehouseRootExpires": _case(
        (
            _flat(f"{_CA}root_cert_expiry_timestamp_seconds", 80 * _DAY),
            _flat(f'{_CA}rotation_phase{{phase="plugged"}}', 1),
        ),
        (
            _flat(f"{_CA}root_cert_expiry_timestamp_seconds", 80 * _DAY),
            _flat(f'{_CA}rotation_phase{{phase="plugged"}}', 0),
        ),
    ),
    "GatehouseAuthorityNotReady": _case(
        (_flat(f'{_CA}ready{{instance="a"}}', 0), _flat(f'{_CA}ready{{instance="b"}}', 0)),
        (_flat(f'{_CA}ready{{instance="a"}}', 0), _flat(f'{_CA}ready{{instance="b"}}', 1)),
    ),
    "GatehouseAuthoritySheds": _case(
        _grows(f'{_CA}shed_total{{limit="limit_queue"}}', 1),
        _flat(f'{_CA}shed_total{{limit="limit_queue"}}', 7),
    ),
    "GatehouseHostileRequests": _case(
        _steps(f'{_CA}hostile_total{{code="spoof_attempt"}}', 0, 1, at=118),  # one is enough
        _flat(f'{_CA}hostile_total{{code="spoof_attempt"}}', 1),
    ),
    "GatehouseIdentityNotRenewed": _case(
        _pair(*_SVID, (0.2 * _DAY, 0.8 * _DAY), _WEB),
        _pair(*_SVID, (0.4 * _DAY, 0.6 * _DAY), _WEB),
        labels={"workload": "demo/web"},
    ),
    "GatehouseRenewalsFail": _case(
        _grows(f'{_AGENT}renew_failures_total{{code="ca_unreachable",instance="node1"}}', 1),
        _grows(f'{_AGENT}renew_failures_total{{code="ca_unreachable",instance="node1"}}', 0.2),
        labels=_OF_NODE,
    ),
    "GatehouseProxyRefusesConfiguration": _case(
        _steps(f'{_AGENT}nacks_total{{type="Listener",instance="node1"}}', 0, 1, at=118),
        _flat(f'{_AGENT}nacks_total{{type="Listener",instance="node1"}}', 1),
        labels=_OF_NODE,
    ),
    "GatehousePoliciesRefused": _case(
        _flat(f"{_WEBHOOK}refused_policies", 1), _flat(f"{_WEBHOOK}refused_policies", 0)
    ),
    "GatehouseWebhookSlow": _case(
        (
            _grows(f'{_LATENCY}{{le="1.0"}}', 90),
            _grows(f'{_LATENCY}{{le="2.5"}}', 100),
            _grows(f'{_LATENCY}{{le="+Inf"}}', 100),
        ),
        (
            _grows(f'{_LATENCY}{{le="0.5"}}', 100),
            _grows(f'{_LATENCY}{{le="1.0"}}', 100),
            _grows(f'{_LATENCY}{{le="+Inf"}}', 100),
        ),
    ),
    "GatehouseWebhookCertificateExpires": _case(
        _flat(f"{_WEBHOOK}serving_cert_expiry_timestamp_seconds", 7300),
        _flat(f"{_WEBHOOK}serving_cert_expiry_timestamp_seconds", 8000),
    ),
    "GatehouseWebhookCertificateNotRenewed": _case(
        _steps(f'{_WEBHOOK}cert_renewals_total{{result="failed"}}', 0, 1, at=100),
        _grows(f'{_WEBHOOK}cert_renewals_total{{result="written"}}', 1),
    ),
    "GatehouseWebhookNotReady": _case(_flat(f"{_WEBHOOK}ready", 0), _flat(f"{_WEBHOOK}ready", 1)),
    "GatehouseCaBundleWrong": _case(
        _flat(f"{_WEBHOOK}ca_bundle_mismatched_entries", 1),
        _flat(f"{_WEBHOOK}ca_bundle_mismatched_entries", 0),
    ),
    "GatehouseKeySetsStale": _case(
        _flat(f"{_WEBHOOK}jwks_stale_sets", 1), _steps(f"{_WEBHOOK}jwks_stale_sets", 0, 1, at=90)
    ),
    "GatehouseAuthorityCannotIssue": _case(
        _steps(f'{_CA}csr_sign_errors_total{{code="issuer_expiring"}}', 0, 1, at=110),
        _flat(f'{_CA}csr_sign_errors_total{{code="issuer_expiring"}}', 3),
        labels={"code": "issuer_expiring"},
    ),
    "GatehouseAuthorityChainExpires": _case(
        _pair(*_CHAIN, (20 * _DAY, 365 * _DAY)),
        _pair(*_CHAIN, (0.33 * 365 * _DAY, 365 * _DAY)),
        _pair(*_CHAIN, (0.33 * _DAY, _DAY)),  # of a day: due now
        _pair(*_CHAIN, (300 * _DAY, 3650 * _DAY)),  # made once for ten years
    ),
    "GatehouseAuthorityServingCertificateExpires": _case(
        _pair(*_SERVING, (0.2 * _DAY, _DAY), _NODE),
        _pair(*_SERVING, (0.5 * _DAY, _DAY), _NODE),
        _pair(*_SERVING, (300, 600), _NODE),
        labels=_OF_NODE,
    ),
    "GatehouseRequestsRefused": _case(
        (
            _grows(f"{_CA}csr_total", 2),
            _grows(f'{_CA}refused_total{{code="token_expired",category="unauthenticated"}}', 1),
            _flat(f'{_CA}hostile_total{{code="spoof_attempt"}}', 0),
        ),
        (
            _grows(f"{_CA}csr_total", 20),
            _grows(f'{_CA}refused_total{{code="token_expired",category="unauthenticated"}}', 1),
            _flat(f'{_CA}hostile_total{{code="spoof_attempt"}}', 0),
        ),
        (
            _grows(f"{_CA}csr_total", 2),
            _grows(f'{_CA}refused_total{{code="limit_queue",category="resource_exhausted"}}', 1),
            _flat(f'{_CA}hostile_total{{code="spoof_attempt"}}', 0),
        ),
        (
            _grows(f"{_CA}csr_total", 2),
            _grows(f'{_CA}refused_total{{code="spoof_attempt",category="permission_denied"}}', 1),
            _grows(f'{_CA}hostile_total{{code="spoof_attempt"}}', 1),
        ),
    ),
    "GatehouseRootsNotPublished": _case(
        (_flat(f"{_CA}root_wrong_namespaces{_NODE}", 2), _flat(f"{_CA}leader_info{_NODE}", 1)),
        (_flat(f"{_CA}root_wrong_namespaces{_NODE}", 0), _flat(f"{_CA}leader_info{_NODE}", 1)),
        (_flat(f"{_CA}root_wrong_namespaces{_NODE}", 2), _flat(f"{_CA}leader_info{_NODE}", 0)),
    ),
    "GatehouseAdmissionsFail": _case(
        _steps(f"{_WEBHOOK}admissions_total{_FAILED.format('review_late')}", 0, 1, at=116),
        _flat(f"{_WEBHOOK}admissions_total{_FAILED.format('review_late')}", 1),
        _grows(f"{_WEBHOOK}admissions_total{_FAILED.format('review_not_json')}", 1),
        _grows(f'{_WEBHOOK}admissions_total{{outcome="denied",reason="invalid_option"}}', 1),
        labels={"reason": "review_late"},
    ),
    "GatehousePolicyAdmissionsFail": _case(
        _steps(f"{_WEBHOOK}policy_admissions_total{_FAILED.format('review_internal')}", 0, 1, at=116),
        _flat(f"{_WEBHOOK}policy_admissions_total{_FAILED.format('review_internal')}", 1),
        _grows(f'{_WEBHOOK}policy_admissions_total{{outcome="denied",reason="policy_bad_url"}}', 1),
        labels={"reason": "review_internal"},
    ),
    "GatehouseInjectorSettingsRefused": _case(
        _flat(f"{_WEBHOOK}config_ready", 0), _flat(f"{_WEBHOOK}config_ready", 1)
    ),
    "GatehouseUpkeepStands": _case(
        _flat(f'{_WEBHOOK}upkeep_last_success_timestamp_seconds{{part="jwks"}}', -600),
        (
            _flat(f'{_WEBHOOK}upkeep_last_success_timestamp_seconds{{part="jwks",instance="former"}}', 0),
            _flat(f'{_WEBHOOK}upkeep_last_success_timestamp_seconds{{part="jwks",instance="leader"}}', 6900),
        ),
        labels={"part": "jwks"},
    ),
    "GatehouseUpkeepHasNoLeader": _case(
        _flat(f"{_WEBHOOK}leader_ready{_NODE}", 0),
        (
            _flat(f'{_WEBHOOK}leader_ready{{instance="keeper"}}', 0),
            _flat(f"{_WEBHOOK}leader_ready{_NODE}", 1),
        ),
    ),
    "GatehouseAgentNotReady": _case(
        _flat(f"{_AGENT}ready{_NODE}", 0),
        _flat(f"{_AGENT}ready{_NODE}", 1),
        _steps(f"{_AGENT}ready{_NODE}", 1, 0, at=115),  # it has just been restarted
        labels=_OF_NODE,
    ),
    "GatehousePodsNotCaptured": _case(
        _flat(f"gatehouse_capture_waiting_pods{_NODE}", 1),
        _flat(f"gatehouse_capture_waiting_pods{_NODE}", 0),
        _steps(f"gatehouse_capture_waiting_pods{_NODE}", 0, 3, 0, at=9),  # many pods at once
        labels=_OF_NODE,
    ),
    "GatehouseVolumesRefused": _case(
        _grows(f'{_AGENT}csi_calls_total{{call="publish",result="csi_no_token",instance="node1"}}', 1),
        _grows(f'{_AGENT}csi_calls_total{{call="publish",result="ok",instance="node1"}}', 9),
        _grows(f'{_AGENT}csi_calls_total{{call="publish",result="csi_not_ready",instance="node1"}}', 0.2),
        labels={**_OF_NODE, "result": "csi_no_token"},
    ),
    "GatehouseClocksApart": _case(
        _flat(f"{_AGENT}clock_skew_seconds{_NODE}", -61),
        _flat(f"{_AGENT}clock_skew_seconds{_NODE}", 2),
        labels=_OF_NODE,
    ),
    "GatehouseRotationStuck": _case(
        _rotation("prepared", 4 * 3600, expected=3, acked=2),
        _rotation("prepared", 4 * 3600, expected=3, acked=3),
        _rotation("prepared", 3600, expected=3, acked=2),
        _rotation("active", 4 * 3600, expected=3, acked=2),
        _rotation("stable", 300 * _DAY, expected=3, acked=2),
        _rotation("prepared", 60, acked=0, late=("stable", 300 * _DAY)),
    ),
    "GatehouseWorkloadsOutdated": _case(
        _rotation("tainted", 4 * _DAY, outdated=1),
        _rotation("active", 4 * _DAY),
        _rotation("active", 2 * _DAY, outdated=9),
        _rotation("active", 60, outdated=9, late=("prepared", 30 * _DAY)),
    ),
    "GatehouseRootEndsWithoutRotation": _case(
        (_flat(_ROOT_END, 13 * _DAY), *_rotation("stable", _DAY)),
        (_flat(_ROOT_END, 100 * _DAY), *_rotation("stable", _DAY)),
        (_flat(_ROOT_END, 13 * _DAY), *_rotation("prepared", 60)),
    ),
    "GatehouseTrustSyncFails": _case(
        _flat(f"{_AGENT}trust_sync_age_seconds{_NODE}", 3700),
        _flat(f"{_AGENT}trust_sync_age_seconds{_NODE}", 900),
        labels=_OF_NODE,
    ),
}
