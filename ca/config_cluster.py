"""Settings of the authority's work on Kubernetes, and of the rotation of its roots."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ca.core.rotation import RotationSettings
from mesh.settings import setting

_SECOND = dt.timedelta(seconds=1)
_DAY = dt.timedelta(days=1)
DNS_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def parse_dns_name(text: str) -> str:
    """A DNS name in lower case, without wildcards.

    Raises:
        ValueError: another form.
    """
    if not DNS_NAME.fullmatch(text):
        raise ValueError("allowed are DNS names in lower case, without wildcards")
    return text


def parse_account(text: str) -> str:
    """`<namespace>/<service account>`.

    Raises:
        ValueError: another form.
    """
    namespace, slash, name = text.partition("/")
    if not slash or not DNS_LABEL.fullmatch(namespace) or not DNS_NAME.fullmatch(name):
        raise ValueError("a service account is written namespace/name, e.g. istio-system/gatehouse-injector")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Work on Kubernetes."""

    kubernetes: bool = setting(
        "Keep the keys in a Secret, take token keys and live pods from the API server, publish the roots in"
        " every namespace. Access comes from the pod, or from `kubeconfig`.",
        default=False,
    )
    kubeconfig: Path | None = setting("Access from outside of the cluster.", default=None)
    namespace: str = setting(
        "Of the Secret, the Lease and the records.", default="istio-system", parse=parse_dns_name
    )
    replica: str = setting("Unique name of this replica; default is the host name.", default="")
    secret: str = setting(
        "Name of the Secret with the keys, and of the ConfigMap that records its root.",
        default="gatehouse-ca",
        parse=parse_dns_name,
    )
    lease: str = setting(
        "Name of the Lease that the leader holds.", default="gatehouse-ca", parse=parse_dns_name
    )
    force_new_root: bool = setting(
        "Make a new root although there are traces of an earlier one. Splits the mesh: for once, on purpose.",
        default=False,
    )
    root_config_map: str = setting(
        "Name of the ConfigMap with the roots in every namespace.",
        default="istio-ca-root-cert",
        parse=parse_dns_name,
    )
    publish_roots: bool = setting("Write that ConfigMap.", default=True)
    publish_trust_bundle: bool = setting(
        "Beside it the ClusterTrustBundle gatehouse.dev:ca:roots, where the API server serves that kind.",
        default=True,
    )
    owner_cluster_role: str = setting(
        "ClusterRole that owns the ConfigMaps, so that they go when it is deleted. None when empty.",
        default="",
    )
    pod_wait: dt.timedelta = setting(
        "How long a caller waits for a pod that the watch has not shown yet.",
        default=2 * _SECOND,
        minimum=0 * _SECOND,
        maximum=10 * _SECOND,
    )
    agents: str = setting(
        "Service account of the node agents, as namespace/name: it alone may use the Sync API, and its living"
        " pods must acknowledge new roots. Nobody when empty.",
        default="",
        parse=lambda text: text and parse_account(text),
    )
    token_review: bool = setting(
        "Have the API server confirm each token too. Then nothing is issued to tokens while it is away.",
        default=False,
    )
    token_review_rate: float = setting(
        "Token reviews per second of one process in the long run; twice as many at once.",
        default=100.0,
        minimum=0.1,
        maximum=10_000.0,
    )
    key_refresh: dt.timedelta = setting(
        "How often the token keys of the API server are read. An unknown key has them read at once.",
        default=300 * _SECOND,
        minimum=10 * _SECOND,
        maximum=_DAY,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationConfig:
    """When another root is made, and when it comes into use. On Kubernetes, with a root of our own."""

    automatic: bool = setting(
        "Take each step of a rotation of roots when it is time and nothing is waited for. When false, people"
        " ask for each.",
        default=True,
    )
    hold: dt.timedelta = setting(
        "From the publishing of the next root to its use at least, whatever is acknowledged before:"
        " everything that reads the roots and does not say so gets this time. At least two"
        " reload_intervals: until then replicas may hand out the roots of before.",
        default=3600 * _SECOND,
        minimum=_SECOND,
        maximum=30 * _DAY,
    )
    prepare_before: dt.timedelta = setting(
        "How long before the end of a root the next one is made; half of its life when that is less.",
        default=30 * _DAY,
        minimum=_SECOND,
        maximum=3650 * _DAY,
    )
    margin: dt.timedelta = setting(
        "How much longer than issue.max_lifetime a former root is trusted: for clocks that differ, and"
        " replicas that learn late that another root signs. At least two reload_intervals.",
        default=600 * _SECOND,
        minimum=0 * _SECOND,
        maximum=7 * _DAY,
    )

    def settings(self, leaf_lifetime: dt.timedelta, reload_interval: dt.timedelta) -> RotationSettings:
        """For the state machine.

        Args:
            leaf_lifetime: the longest of any leaf.
            reload_interval: between two looks of a replica at the Secret.
        """
        least = 2 * reload_interval
        return RotationSettings(
            automatic=self.automatic,
            hold=max(self.hold, least),
            prepare_before=self.prepare_before,
            leaf_lifetime=leaf_lifetime,
            margin=max(self.margin, least),
        )
