{{/* Names, labels, images: what many templates share. */}}

{{- define "gatehouse.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of names of objects. 40 characters leave room for the longest suffix. */}}
{{- define "gatehouse.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "gatehouse.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "gatehouse.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The components of the release, in one text. */}}
{{- define "gatehouse.components" -}}
ca injector upkeep nodeagent{{ if eq .Values.capture.mode "node" }} capture{{ end }}
{{- end -}}

{{/* Selectors of a component: list $ "ca". Never changed, Deployments cannot change them. */}}
{{- define "gatehouse.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "gatehouse.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of an object of a component: list $ "ca". */}}
{{- define "gatehouse.labels" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.commonLabels }}{{ toYaml . }}
{{ end -}}
{{ include "gatehouse.selector" . }}
app.kubernetes.io/part-of: gatehouse
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* `metadata` of a namespaced object: list $ "ca" "name". */}}
{{- define "gatehouse.meta" -}}
{{ include "gatehouse.meta-cluster" . }}
  namespace: {{ (index . 0).Release.Namespace }}
{{- end -}}

{{/* `metadata` of an object without a namespace. A fourth item is a map of more annotations, a fifth
     one of more labels. */}}
{{- define "gatehouse.meta-cluster" -}}
{{- $root := index . 0 -}}
{{- $annotations := dict -}}
{{- if gt (len .) 3 }}{{ $annotations = index . 3 }}{{ end -}}
metadata:
  name: {{ index . 2 }}
  labels:
    {{- include "gatehouse.labels" (list $root (index . 1)) | nindent 4 }}
    {{- if gt (len .) 4 }}{{ with index . 4 }}
    {{- toYaml . | nindent 4 }}
    {{- end }}{{ end }}
{{- with merge (dict) $annotations $root.Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Reference of an image: list $ "control". */}}
{{- define "gatehouse.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.image (index . 1) -}}
{{- with $root.Values.image.registry | default $root.Values.global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $root.Values.image.tag }}{{ end -}}
{{- end -}}

{{/* Names of pull Secrets as JSON, each once: dict "root" $ "own" LIST. A parent chart may give a name or {name: NAME}. */}}
{{- define "gatehouse.pull-secrets" -}}
{{- $names := .own -}}
{{- range .root.Values.global.imagePullSecrets | default list -}}
{{- $name := . -}}
{{- if kindIs "map" . }}{{ $name = .name }}{{ end -}}
{{- $names = append $names $name -}}
{{- end -}}
{{ $names | uniq | toJson }}
{{- end -}}

{{/* Host name of a Service of the release: list $ "ca". */}}
{{- define "gatehouse.host" -}}
{{- $root := index . 0 -}}
{{ include "gatehouse.fullname" $root }}-{{ index . 1 }}.{{ $root.Release.Namespace }}.svc
{{- end -}}
