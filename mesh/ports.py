"""Ports, the user and the addresses that a pod with a sidecar reserves: written down once.

The numbers are Istio's, so that network policies, dashboards and people know them.
"""

from __future__ import annotations

from typing import Final

OUTBOUND: Final = 15001
"""What the application sends arrives here."""
INBOUND: Final = 15006
"""What peers send arrives here."""
PROBE: Final = 15020
"""The kubelet's probes and hooks, and merged metrics."""
READY: Final = 15021
"""`/healthz/ready` of the proxy itself."""
STATS: Final = 15090
"""`/stats/prometheus` of the proxy itself."""

OWN: Final = (PROBE, READY, STATS)
"""Served by the proxy to the kubelet and to Prometheus, which have no mesh identity: never captured."""
VALIDATION: Final = 15002
"""Nobody listens here: what is sent to it arrives at another port, or the pod is not captured."""
RESERVED: Final = (15000, OUTBOUND, INBOUND, *OWN)
"""An application must not listen on these; 15000 is the admin port of the neighbours."""

PROXY_UID: Final = 1337
"""The proxy's user and group; this user's own connections are not captured."""

PASSTHROUGH_V4: Final = "127.0.0.6"
PASSTHROUGH_V6: Final = "::6"
"""Source addresses of the proxy's connections to the application beside it."""
