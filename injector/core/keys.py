"""Label and annotation keys, written down once."""

from __future__ import annotations

from typing import Final

SIDECAR: Final = "sidecar.istio.io/"
TRAFFIC: Final = "traffic.sidecar.istio.io/"
READINESS: Final = "readiness.status.sidecar.istio.io/"

INJECT: Final = SIDECAR + "inject"
STATUS: Final = SIDECAR + "status"
OVERRIDES: Final = "proxy.istio.io/overrides"
REVISION: Final = "istio.io/rev"

NAMESPACE_LABEL: Final = "istio-injection"
ENABLED: Final = "enabled"
DISABLED: Final = "disabled"

TLS_MODE: Final = "security.istio.io/tlsMode"
CANONICAL_NAME: Final = "service.istio.io/canonical-name"
CANONICAL_REVISION: Final = "service.istio.io/canonical-revision"

DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"
DEFAULT_LOGS_CONTAINER: Final = "kubectl.kubernetes.io/default-logs-container"

POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"
