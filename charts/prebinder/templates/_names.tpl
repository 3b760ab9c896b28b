{{/* Names and labels. A name has at most 63 characters with its longest suffix. */}}

{{- define "prebinder.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 43 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 43 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 43 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What never changes in the life of a release: selectors. Takes (list . "component"). */}}
{{- define "prebinder.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: {{ default "prebinder" $top.Values.nameOverride }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "prebinder.labels" -}}
{{- $top := index . 0 -}}
{{ include "prebinder.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
app.kubernetes.io/part-of: prebinder
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" | trunc 63 }}
{{- end -}}

{{/* Takes a dict with `image` and `Chart`. */}}
{{- define "prebinder.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .Chart.AppVersion .image.tag }}
{{- end -}}
{{- end -}}

{{- define "prebinder.builds.namespace" -}}
{{- default .Release.Namespace .Values.builds.namespace -}}
{{- end -}}

{{- define "prebinder.servers.namespace" -}}
{{- default .Release.Namespace .Values.servers.namespace -}}
{{- end -}}

{{- define "prebinder.controllerToken.secret" -}}
{{- default (printf "%s-controller-token" (include "prebinder.fullname" .)) .Values.controllerToken.existingSecret -}}
{{- end -}}
