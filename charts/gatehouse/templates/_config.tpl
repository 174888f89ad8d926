{{/* Settings files of the processes: what the chart decides, then the user's settings. */}}

{{/* A settings file: dict "own" DICT "more" DICT. The chart's keys that must fit its other objects cannot be
     changed: the schema does not have them. */}}
{{- define "gatehouse.settings" -}}
{{ mustMergeOverwrite (deepCopy .own) (deepCopy .more) | toYaml }}
{{- end -}}

{{- define "gatehouse.injector-config" -}}
{{- $values := .Values.injector -}}
{{- $own := dict
  "namespace" .Release.Namespace
  "service" (printf "%s-injector" (include "gatehouse.fullname" .))
  "serving_dir" "/run/gatehouse/serving"
  "events" $values.events
  "listen" (dict "https" "0.0.0.0:15017" "plain" "0.0.0.0:15014")
  "log_level" .Values.log.level
  "log_json" (eq .Values.log.format "json")
  "injection" (dict
    "proxy_image" (include "gatehouse.image" (list . "proxy"))
    "image_pull_policy" .Values.image.pullPolicy
    "image_pull_secrets" (include "gatehouse.pull-secrets" (dict "root" . "own" .Values.image.podPullSecrets) | fromJsonArray)
    "trust_domain" .Values.trustDomain
    "version" .Chart.AppVersion
    "selection" (dict
      "revision" $values.revision
      "tags" $values.tags
      "namespaces_by_default" $values.namespacesByDefault
      "excluded_namespaces" $values.excludedNamespaces))
  "certificate" (dict
    "ca_address" (printf "%s:15012" (include "gatehouse.host" (list . "ca")))
    "token_file" "/var/run/secrets/tokens/istio-token"
    "root_file" "/var/run/secrets/istio/root-cert.pem"
    "listen" "0.0.0.0:15016")
  "upkeep" (dict
    "service" (printf "%s-upkeep" (include "gatehouse.fullname" .))
    "lease" (printf "%s-upkeep" (include "gatehouse.fullname" .))
    "webhook_selector" "app=gatehouse"
    "jwks" (dict "config_map" "gatehouse-jwks")
    "nodes" (dict "config_map" "gatehouse-nodes")
    "policy_status" .Values.upkeep.policyStatus)
-}}
{{- if ne (toString $values.nativeSidecars) "auto" -}}
{{- $_ := set $own.injection "defaults" (dict "sidecar.istio.io/nativeSidecar" (toString $values.nativeSidecars)) -}}
{{- end -}}
{{- if eq .Values.capture.mode "node" -}}
{{- $_ := set $own.injection "node_capture" true -}}
{{- $_ := set $own "capture_agent" (dict "service" (printf "%s-capture" (include "gatehouse.fullname" .))) -}}
{{- end -}}
{{- if .Values.metrics.tls -}}
{{- $_ := set $own.listen "metrics" "0.0.0.0:15015" -}}
{{- $_ := set $own.certificate "metrics" "0.0.0.0:15018" -}}
{{- end -}}
{{- if .Values.upkeep.issuerRoots }}{{ $_ := set $own.upkeep.jwks "ca_file" "/etc/gatehouse/issuer-roots.pem" }}{{ end -}}
{{ include "gatehouse.settings" (dict "own" $own "more" $values.config) }}
{{- end -}}

{{- define "gatehouse.ca-config" -}}
{{- $values := .Values.ca -}}
{{- $name := include "gatehouse.fullname" . -}}
{{- $host := include "gatehouse.host" (list . "ca") -}}
{{- $webhook := printf "%s-injector.%s" $name .Release.Namespace -}}
{{- $own := dict
  "trust_domain" .Values.trustDomain
  "log_level" .Values.log.level
  "log_json" (eq .Values.log.format "json")
  "state_dir" "/var/lib/gatehouse/ca"
  "listen" (dict "grpc" "0.0.0.0:15012" "mtls" "0.0.0.0:15013" "http" "0.0.0.0:15010")
  "token" (dict "audiences" (list "istio-ca"))
  "serving" (dict "names" (list $host (printf "%s.%s" $host .Values.clusterDomain) (trimSuffix ".svc" $host) "localhost" "127.0.0.1"))
  "serving_grants" (list (dict
    "service_account" (printf "%s/%s-injector" .Release.Namespace $name)
    "dns" (list (printf "%s.svc" $webhook) (printf "%s.svc.cluster.local" $webhook) $webhook)))
  "cluster" (dict
    "kubernetes" true
    "namespace" .Release.Namespace
    "secret" "gatehouse-ca"
    "lease" "gatehouse-ca"
    "owner_cluster_role" (printf "%s-ca" $name)
    "agents" (printf "%s/%s-nodeagent" .Release.Namespace $name)
    "token_review" $values.tokenReview)
  "rotation" (dict "automatic" $values.rotation.automatic "hold" $values.rotation.hold)
-}}
{{- if .Values.metrics.tls -}}
{{- range without (include "gatehouse.components" $ | splitList " ") "ca" "injector" -}}
{{- $_ := set $own "serving_grants" (append $own.serving_grants (dict
  "service_account" (printf "%s/%s-%s" $.Release.Namespace $name .)
  "dns" (list (include "gatehouse.host" (list $ .))))) -}}
{{- end -}}
{{- else }}{{ $_ := set $own.listen "plain" "0.0.0.0:15014" }}{{ end -}}
{{- if $values.existingSecret }}{{ $_ := set $own "ca_dir" "/etc/gatehouse-ca" }}{{ end -}}
{{ include "gatehouse.settings" (dict "own" $own "more" $values.config) }}
{{- end -}}

{{- define "gatehouse.nodeagent-config" -}}
{{- $values := .Values.nodeagent -}}
{{- $own := dict
  "mode" "kubernetes"
  "listen" "0.0.0.0:15014"
  "log_level" .Values.log.level
  "kubernetes" (dict
    "namespace" .Release.Namespace
    "cluster_domain" .Values.clusterDomain
    "kubelet_dir" $values.kubeletDir
    "state_dir" "/run/gatehouse/agent")
  "mesh" (dict
    "trust_domain" .Values.trustDomain
    "root_namespace" .Release.Namespace)
  "ca" (dict
    "address" (printf "%s:15012" (include "gatehouse.host" (list . "ca")))
    "root_file" "/var/run/secrets/istio/root-cert.pem"
    "token_file" "/var/run/secrets/tokens/istio-token")
-}}
{{- if .Values.metrics.tls -}}
{{- $_ := set $own "metrics_tls" (dict
  "listen" "0.0.0.0:15015"
  "name" (include "gatehouse.host" (list . "nodeagent"))
  "token_file" "/var/run/secrets/tokens/istio-token") -}}
{{- end -}}
{{ include "gatehouse.settings" (dict "own" $own "more" $values.config) }}
{{- end -}}
