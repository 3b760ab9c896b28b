{{/* What the pods of controller, endpoint and `helm test` have in common. */}}

{{- define "prebinder.pod.security" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "prebinder.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "prebinder.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Volumes and their mounts: the configuration as a folder (a subPath would never change), secrets, scratch space. */}}
{{- define "prebinder.volumes" -}}
- name: config
  configMap:
    name: {{ include "prebinder.fullname" . }}
- name: secret-controller
  secret:
    secretName: {{ include "prebinder.controllerToken.secret" . }}
    defaultMode: 0440
{{- if .Values.hub.tokenSecret.name }}
- name: secret-hub
  secret:
    secretName: {{ .Values.hub.tokenSecret.name }}
    defaultMode: 0440
    items:
      - key: {{ .Values.hub.tokenSecret.key }}
        path: {{ .Values.hub.tokenSecret.key }}
{{- end }}
{{- if .Values.registryCredentials.secret }}
- name: secret-registry
  secret:
    secretName: {{ .Values.registryCredentials.secret }}
    defaultMode: 0440
{{- end }}
{{- range .Values.secrets }}
- name: secret-extra-{{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end }}
- name: tmp
  emptyDir: {}
{{- end -}}

{{- define "prebinder.mounts" -}}
- name: config
  mountPath: /etc/prebinder/config
  readOnly: true
- name: secret-controller
  mountPath: /etc/prebinder/secrets/controller
  readOnly: true
{{- if .Values.hub.tokenSecret.name }}
- name: secret-hub
  mountPath: /etc/prebinder/secrets/hub
  readOnly: true
{{- end }}
{{- if .Values.registryCredentials.secret }}
- name: secret-registry
  mountPath: /etc/prebinder/secrets/registry
  readOnly: true
{{- end }}
{{- range .Values.secrets }}
- name: secret-extra-{{ .name }}
  mountPath: /etc/prebinder/secrets/{{ .name }}
  readOnly: true
{{- end }}
- name: tmp
  mountPath: /tmp
{{- end -}}

{{/* Takes (list . "controller"): where its pods go. */}}
{{- define "prebinder.placement" -}}
{{- $part := index (index . 0).Values (index . 1) -}}
{{- with $part.nodeSelector }}
nodeSelector:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
{{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* The Prometheus pods of an operator, wherever they are, as peers of a NetworkPolicy; nothing without a ServiceMonitor. */}}
{{- define "prebinder.scrapers" -}}
{{- if .Values.monitoring.serviceMonitor.enabled -}}
- namespaceSelector: {}
  podSelector:
    matchLabels:
      app.kubernetes.io/name: prometheus
{{- end -}}
{{- end -}}
