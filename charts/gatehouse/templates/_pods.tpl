{{/* Parts of pods. Each takes list $ "component" unless it says otherwise; values of a component
     are under its name. */}}

{{- define "gatehouse.pod-metadata" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
{{- $annotations := dict -}}
{{- if $root.Values.metrics.annotations -}}
{{- $_ := set $annotations "prometheus.io/scrape" "true" -}}
{{- $_ := set $annotations "prometheus.io/path" "/metrics" -}}
{{- $tls := $root.Values.metrics.tls -}}
{{- $_ := set $annotations "prometheus.io/port" (ternary (ternary "15010" "15015" (eq $component "ca")) "15014" $tls) -}}
{{- if $tls }}{{ $_ := set $annotations "prometheus.io/scheme" "https" }}{{ end -}}
{{- end -}}
labels:
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "gatehouse.labels" . | nindent 2 }}
  # Excludes the pod from every webhook entry, whatever the namespace's labels say.
  sidecar.istio.io/inject: "false"
annotations:
  {{- with merge (dict) $values.podAnnotations $annotations $root.Values.commonAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  checksum/config: {{ index . 2 | sha256sum }}
{{- end -}}

{{- define "gatehouse.pod-common" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
serviceAccountName: {{ include "gatehouse.fullname" $root }}-{{ $component }}
automountServiceAccountToken: false
enableServiceLinks: false
priorityClassName: {{ $values.priorityClassName }}
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds | int64 }}
{{- with include "gatehouse.pull-secrets" (dict "root" $root "own" $root.Values.image.pullSecrets) | fromJsonArray }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The number of pods, unless an autoscaler has it: an upgrade would set it back each time. */}}
{{- define "gatehouse.replicas" -}}
{{- $values := index (index . 0).Values (index . 1) -}}
{{- if not $values.autoscaling.enabled -}}
replicas: {{ $values.replicas | int64 }}
{{- end -}}
{{- end -}}

{{/* Different nodes and zones, by preference: a cluster of one node works too. */}}
{{- define "gatehouse.spread" -}}
{{- $values := index (index . 0).Values (index . 1) -}}
affinity:
{{- with $values.affinity }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "gatehouse.selector" . | nindent 14 }}
{{- end }}
topologySpreadConstraints:
{{- with $values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "gatehouse.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* Pod Security `restricted`. What is null is left to the cluster. */}}
{{- define "gatehouse.pod-security" -}}
{{- $users := .Values.podSecurity -}}
securityContext:
  runAsNonRoot: true
  {{- range $key := list "runAsUser" "runAsGroup" "fsGroup" }}
  {{- $number := index $users $key }}
  {{- if not (kindIs "invalid" $number) }}
  {{ $key }}: {{ $number | int64 }}
  {{- end }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "gatehouse.container-security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* Image and rights of a container of the control plane. */}}
{{- define "gatehouse.container" -}}
{{- $root := index . 0 -}}
image: {{ include "gatehouse.image" (list $root "control") | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
{{ include "gatehouse.container-security" $root }}
{{- end -}}

{{/* Ports for health and metrics of a process that has both on 15014, or metrics by TLS beside. */}}
{{- define "gatehouse.metrics-ports" -}}
{{- if .Values.metrics.tls -}}
- {name: http-health, containerPort: 15014, protocol: TCP}
- {name: https-metrics, containerPort: 15015, protocol: TCP}
{{- else -}}
- {name: http-metrics, containerPort: 15014, protocol: TCP}
{{- end -}}
{{- end -}}

{{/* Name of the port for the kubelet. */}}
{{- define "gatehouse.health-port" -}}
{{- ternary "http-health" "http-metrics" .Values.metrics.tls -}}
{{- end -}}

{{/* Probes: list PORT SCHEME. Startup is patient; liveness never judges readiness. */}}
{{- define "gatehouse.probes" -}}
{{- $scheme := index . 1 -}}
startupProbe:
  httpGet: {path: /livez, port: {{ index . 0 }}, scheme: {{ $scheme }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: {{ index . 0 }}, scheme: {{ $scheme }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ index . 0 }}, scheme: {{ $scheme }}}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{/* A token for the API server, mounted only into the container that talks to it. */}}
{{- define "gatehouse.volume-api" -}}
- name: api-token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
{{- end -}}

{{- define "gatehouse.mount-api" -}}
- {name: api-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end -}}

{{/* A token for the authority. */}}
{{- define "gatehouse.volume-ca-token" -}}
- name: ca-token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: istio-token, audience: istio-ca, expirationSeconds: 3600}
{{- end -}}

{{- define "gatehouse.mount-ca-token" -}}
- {name: ca-token, mountPath: /var/run/secrets/tokens, readOnly: true}
{{- end -}}

{{/* The roots. The authority makes this ConfigMap; a pod waits for it, for seconds at the first installation. */}}
{{- define "gatehouse.volume-roots" -}}
- name: roots
  configMap:
    name: istio-ca-root-cert
    items: [{key: root-cert.pem, path: root-cert.pem}]
{{- end -}}

{{- define "gatehouse.mount-roots" -}}
- {name: roots, mountPath: /var/run/secrets/istio, readOnly: true}
{{- end -}}

{{- define "gatehouse.volume-config" -}}
- name: config
  configMap:
    name: {{ include "gatehouse.fullname" (index . 0) }}-{{ index . 1 }}-config
{{- end -}}

{{- define "gatehouse.mount-config" -}}
- {name: config, mountPath: /etc/gatehouse, readOnly: true}
{{- end -}}
