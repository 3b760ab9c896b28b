{{/*
The configuration file: what the chart knows, below what the values say. Only what has to differ from one machine is
filled in here. Returns YAML.
*/}}
{{- define "prebinder.config" -}}
{{- $name := include "prebinder.fullname" . -}}
{{- $port := dig "controller" "port" 8587 .Values.config -}}
{{- $controller := dict
    "address" "0.0.0.0"
    "url" (printf "http://%s-controller:%d" $name (int $port))
    "token" (dict "file" (printf "/etc/prebinder/secrets/controller/%s" .Values.controllerToken.key)) -}}
{{- if .Values.controller.lease -}}
{{- $_ := set $controller "lease" (printf "%s-controller" $name) -}}
{{- end -}}
{{- $kubernetes := dict
    "namespace" (include "prebinder.builds.namespace" .)
    "instance" ($name | trunc 40 | trimSuffix "-")
    "image" (include "prebinder.image" (dict "image" .Values.builds.image "Chart" .Chart))
    "image_pull_policy" .Values.image.pullPolicy -}}
{{- if .Values.image.pullSecrets -}}
{{- $_ := set $kubernetes "image_pull_secrets" .Values.image.pullSecrets -}}
{{- end -}}
{{- $builder := dict "kind" "kubernetes" "kubernetes" $kubernetes -}}
{{- $hub := dict
    "url" .Values.hub.url
    "token" (dict "file" (printf "/etc/prebinder/secrets/hub/%s" .Values.hub.tokenSecret.key)) -}}
{{- if .Values.hub.publicUrl -}}
{{- $_ := set $hub "public_url" .Values.hub.publicUrl -}}
{{- end -}}
{{- $registry := dict -}}
{{- if .Values.registry.enabled -}}
{{- $registry = dict "prefix" (printf "%s/prebinder/" (required "\n\nregistry.host is not set: host and port under which nodes and pods both reach the small registry, for example 192.168.0.10:30500." .Values.registry.host)) "insecure" true -}}
{{- end -}}
{{- if .Values.registryCredentials.secret -}}
{{- $_ := set $registry "credentials" (printf "/etc/prebinder/secrets/registry/%s" .Values.registryCredentials.key) -}}
{{- end -}}
{{- $known := dict
    "site" (dict "address" "0.0.0.0")
    "controller" $controller
    "builder" $builder
    "hub" $hub
    "registry" $registry -}}
{{- $config := mergeOverwrite $known (deepCopy .Values.config) -}}
{{- if not $config.hub.url -}}
{{- fail "\n\nhub.url is not set: the address of JupyterHub inside the cluster, for example http://proxy-public (or install the chart prebinder-hub, which brings a JupyterHub)." -}}
{{- end -}}
{{- if and (not .Values.hub.tokenSecret.name) (eq (toString (dig "token" "file" "" $config.hub)) (printf "/etc/prebinder/secrets/hub/%s" .Values.hub.tokenSecret.key)) -}}
{{- fail "\n\nhub.tokenSecret.name is not set: the Secret that holds the API token of the Hub's service for Prebinder." -}}
{{- end -}}
{{- if not $config.registry.prefix -}}
{{- fail "\n\nconfig.registry.prefix is not set: where images are kept, for example registry.example.org/binder/ (or registry.enabled=true for a small registry in the cluster, for trying out)." -}}
{{- end -}}
{{- if and (gt (int .Values.controller.replicas) 1) (not .Values.controller.lease) -}}
{{- fail "\n\ncontroller.replicas is more than 1: this needs controller.lease=true, so that one of them is active, and a PostgreSQL database in config.ledger.url." -}}
{{- end -}}
{{- if and (gt (int .Values.controller.replicas) 1) (not (hasPrefix "postgres" (dig "ledger" "url" "" $config))) -}}
{{- fail "\n\ncontroller.replicas is more than 1, but config.ledger.url names no PostgreSQL database; a SQLite file has one user." -}}
{{- end -}}
{{- if and (gt (int .Values.controller.replicas) 1) .Values.controller.persistence.enabled (not .Values.controller.persistence.existingClaim) (not (has "ReadWriteMany" .Values.controller.persistence.accessModes)) -}}
{{- fail "\n\ncontroller.replicas is more than 1, but the controllers' volume can be on one node only: set controller.persistence.accessModes to [ReadWriteMany], or controller.persistence.enabled=false (then each controller has the logs of its own builds)." -}}
{{- end -}}
{{- range $key, $namespace := dict "builder.kubernetes.namespace" $config.builder.kubernetes.namespace "prepull.namespace" (dig "prepull" "namespace" "" $config) -}}
{{- if and $namespace (ne $namespace (include "prebinder.builds.namespace" $)) -}}
{{- fail (printf "\n\nconfig.%s is %s, where the chart gives neither rights nor NetworkPolicies. Set builds.namespace instead." $key $namespace) -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "prebinder.site.port" -}}
{{- dig "site" "port" 8585 .Values.config -}}
{{- end -}}

{{- define "prebinder.controller.port" -}}
{{- dig "controller" "port" 8587 .Values.config -}}
{{- end -}}

{{/*
Annotations of the pods of a half (controller, endpoint), given with the chart and `podAnnotations`. What it reads once
(prebinder/config/watch.py) is in a checksum: a change of it replaces the pods; any other change is picked up by the
running ones.
*/}}
{{- define "prebinder.annotations" -}}
{{- $config := include "prebinder.config" .top | fromYaml -}}
{{- $once := pick $config "controller" "hosts" "registry" -}}
{{- if eq .half "controller" -}}
{{- $once = merge $once (pick $config "ledger") (dict "kind" $config.builder.kind) -}}
{{- else -}}
{{- $polling := pick (default dict $config.polling) "click_budget" "stale_after" -}}
{{- $once = merge $once (pick $config "hub" "site") (dict "polling" $polling) -}}
{{- end -}}
prebinder/read-once: {{ toJson $once | sha256sum | trunc 16 | quote }}
{{- with .annotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}
