{{/* Who owns what a cluster can have once. Each takes dict "root" $ "live" OBJECT, with the object as the API server
     gave it, empty when there is none; each refuses, or renders nothing. */}}

{{/* The owner of an object in words; empty when there is no object, or when it is this release's. */}}
{{- define "gatehouse.other-owner" -}}
{{- with .live -}}
{{- $notes := .metadata.annotations | default dict -}}
{{- $name := index $notes "meta.helm.sh/release-name" | default "" -}}
{{- $namespace := index $notes "meta.helm.sh/release-namespace" | default "" -}}
{{- if not $name -}}
nobody that Helm knows
{{- else if or (ne $name $.root.Release.Name) (ne $namespace $.root.Release.Namespace) -}}
release {{ $name }} of namespace {{ $namespace }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "gatehouse.refuse-second-driver" -}}
{{- $owner := include "gatehouse.other-owner" . -}}
{{- if hasPrefix "release " $owner -}}
{{- fail (printf "%s is a Gatehouse already, and a cluster has one: CSIDriver %s is its own; next: upgrade that release, or uninstall it first (docs/install.md, Uninstall)" $owner .live.metadata.name) -}}
{{- end -}}
{{- end -}}

{{- define "gatehouse.refuse-foreign-kind" -}}
{{- $owner := include "gatehouse.other-owner" . -}}
{{- if $owner -}}
{{- fail (printf "CustomResourceDefinition %s exists and belongs to %s, Istio perhaps; it is not taken over; next: --set crds.install=false" .live.metadata.name $owner) -}}
{{- end -}}
{{- end -}}

{{/* Two webhooks for one label would both put a sidecar into a pod. */}}
{{- define "gatehouse.refuse-shared-label" -}}
{{- $root := .root -}}
{{- if and .live (has "default" (prepend $root.Values.injector.tags $root.Values.injector.revision)) -}}
{{- range .live.webhooks | default list -}}
{{- range ((.namespaceSelector | default dict).matchExpressions | default list) -}}
{{- if and (eq .key "istio-injection") (has "enabled" (.values | default list)) (eq .operator "In") -}}
{{- fail (printf "MutatingWebhookConfiguration %s, which is Istio's, serves the label istio-injection=enabled already: pods would get two sidecars; next: --set injector.revision=gatehouse and label namespaces istio.io/rev=gatehouse, or remove Istio's first" $.live.metadata.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
