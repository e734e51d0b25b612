{{- /* What several templates share. A template's first line says what it is given. */}}

{{- define "imdsproxy.labels" -}}
{{- /* the root */ -}}
app.kubernetes.io/name: {{ .Values.name }}
app.kubernetes.io/version: {{ .Chart.AppVersion }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "imdsproxy.image" -}}
{{- /* a list: the root, an image of the values */ -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "imdsproxy.hostNetwork" -}}
{{- /* the root; returns "true" or nothing */ -}}
{{- if or (has .Values.layout (list "address" "redirect")) (and (eq .Values.layout "socket") .Values.socket.hostNetwork) }}true{{ end }}
{{- end }}

{{- define "imdsproxy.hostPath" -}}
{{- /* the root; returns "true" or nothing */ -}}
{{- if has .Values.layout (list "socket" "redirect") }}true{{ end }}
{{- end }}

{{- define "imdsproxy.asRoot" -}}
{{- /* the root; returns "true" where the proxy has to open a port that the node's network reserves */ -}}
{{- if and (eq .Values.layout "address") (lt (int .Values.address.port) 1024) }}true{{ end }}
{{- end }}

{{- define "imdsproxy.user" -}}
{{- /* the root. A redirect exempts one user, so that user must be the proxy's alone. 65532 is also that of many images
without a shell. */ -}}
{{- if include "imdsproxy.asRoot" . }}0{{ else if eq .Values.layout "redirect" }}8254{{ else }}65532{{ end }}
{{- end }}

{{- define "imdsproxy.security" -}}
{{- /* a dict: user, group (numbers), add (a list of capabilities or nothing) */ -}}
runAsNonRoot: {{ ne (int .user) 0 }}
runAsUser: {{ .user }}
runAsGroup: {{ .group }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
  {{- with .add }}
  add:
    {{- toYaml . | nindent 4 }}
  {{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "imdsproxy.setting" -}}
{{- /* the value of a setting. Helm reads every number of a file as one with an exponent, such as 3.3554432e+07. */ -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ printf "%.0f" . | quote }}{{ else }}{{ . | toString | quote }}{{ end }}
{{- end }}

{{- define "imdsproxy.probes" -}}
{{- /* nothing */ -}}
startupProbe:
  httpGet:
    path: /-/healthy
    port: imdsproxy-admin
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /-/healthy
    port: imdsproxy-admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /-/ready
    port: imdsproxy-admin
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{- define "imdsproxy.admin" -}}
{{- /* nothing; the variables of the listener that serves /-/ alone */ -}}
- name: IMDSPROXY_ADMIN_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: IMDSPROXY_ADMIN_PORT
  value: "8256"
{{- end }}

{{- define "imdsproxy.brief" -}}
{{- /* limits of memory for a container that only prepares or waits */ -}}
requests:
  cpu: 10m
  memory: {{ .request }}
limits:
  cpu: 500m
  memory: {{ .limit }}
{{- end }}

{{- define "imdsproxy.url" -}}
{{- /* the root; where programs ask */ -}}
{{- if eq .Values.layout "address" -}}
http://{{ .Values.address.ip }}{{ with int .Values.address.port }}{{ if ne . 80 }}:{{ . }}{{ end }}{{ end }}
{{- else -}}
http://169.254.169.254
{{- end }}
{{- end }}
