{{/* One entry: dict "root" $ "name" "namespace" "namespace" (list of requirements) "pod" (likewise).
     A requirement is text: `key In a,b`, `key NotIn a`, `key Exists`, `key DoesNotExist`. */}}
{{- define "gatehouse.webhook" -}}
{{- $root := .root -}}
{{- $webhook := $root.Values.injector.webhook -}}
{{- $excluded := concat (list "kube-system" "kube-public" "kube-node-lease" "local-path-storage" $root.Release.Namespace) $root.Values.injector.excludedNamespaces | uniq -}}
- name: {{ .name }}.sidecar-injector.gatehouse.dev
  admissionReviewVersions: [v1]
  clientConfig:
    service:
      name: {{ include "gatehouse.fullname" $root }}-injector
      namespace: {{ $root.Release.Namespace }}
      path: /inject/v1
      port: 443
  rules:
    - operations: [CREATE]
      apiGroups: [""]
      apiVersions: [v1]
      resources: [pods]
      scope: Namespaced
  failurePolicy: {{ $webhook.failurePolicy }}
  matchPolicy: Equivalent
  reinvocationPolicy: {{ $webhook.reinvocationPolicy }}
  sideEffects: {{ ternary "NoneOnDryRun" "None" $root.Values.injector.events }}
  timeoutSeconds: {{ $webhook.timeoutSeconds | int64 }}
  namespaceSelector:
    matchExpressions:
      {{- range .namespace }}
      {{- include "gatehouse.requirement" . | nindent 6 }}
      {{- end }}
      # Never, whatever labels say (the API server sets this label since 1.21).
      - {key: kubernetes.io/metadata.name, operator: NotIn, values: [{{ join ", " $excluded }}]}
  objectSelector:
    matchExpressions:
      {{- range .pod }}
      {{- include "gatehouse.requirement" . | nindent 6 }}
      {{- end }}
      # Gatehouse can always start, also where namespaces have no label with their name.
      - {key: app.kubernetes.io/part-of, operator: NotIn, values: [gatehouse]}
  {{- if semverCompare ">=1.30-0" $root.Capabilities.KubeVersion.Version }}
  matchConditions:
    - name: not-a-system-namespace
      expression: "!(request.namespace in [{{ range $index, $name := $excluded }}{{ if $index }}, {{ end }}'{{ $name }}'{{ end }}])"
    - name: not-a-mirror-pod
      expression: "!has(object.metadata.annotations) || !('kubernetes.io/config.mirror' in object.metadata.annotations)"
  {{- end }}
{{- end -}}

{{- define "gatehouse.requirement" -}}
{{- $parts := splitList " " . -}}
- key: {{ index $parts 0 }}
  operator: {{ index $parts 1 }}
  {{- if gt (len $parts) 2 }}
  values: [{{ range $index, $value := splitList "," (index $parts 2) }}{{ if $index }}, {{ end }}{{ $value | quote }}{{ end }}]
  {{- end }}
{{- end -}}
