{{- define "vectorize.name" -}}
{{- if contains "vectorize" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-vectorize" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "vectorize.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "vectorize.selector" . }}
{{- end -}}

{{- define "vectorize.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Names under which the gateway is reached: its service's, the ingress's, and those of the values. */}}
{{- define "vectorize.hosts" -}}
{{- $service := printf "%s-gateway" (include "vectorize.name" .) -}}
{{- $port := .Values.gateway.service.port -}}
{{- $hosts := list (printf "%s:%v" $service $port) (printf "%s.%s:%v" $service .Release.Namespace $port) -}}
{{- if .Values.gateway.ingress.enabled -}}
{{- $hosts = append $hosts .Values.gateway.ingress.host -}}
{{- end -}}
{{- concat $hosts .Values.gateway.hosts | join "," -}}
{{- end -}}

{{- define "vectorize.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end -}}

{{/* What every container gets beside the ConfigMap of settings. Its list is in the instance's dagster.yaml, too. */}}
{{- define "vectorize.environment" -}}
- name: DAGSTER_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.database.secret }}, key: {{ .Values.database.key }}}}
{{- with .Values.redis.secret }}
- name: VECTORIZE_REDIS__URL
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.redis.key }}}}
{{- end }}
{{- with .Values.store.apiKey.secret }}
- name: VECTORIZE_STORE__API_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.store.apiKey.key }}}}
{{- end }}
{{- range .Values.secretSettings }}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}
{{- end }}
# Named where a machine is lost.
- name: VECTORIZE_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end -}}

{{/* The root is read-only. The instance's folder is a volume of its own: as a part of the home it would be root's. */}}
{{- define "vectorize.volumes" -}}
- name: home
  emptyDir: {}
- name: dagster-home
  emptyDir: {}
- name: tmp
  emptyDir: {}
- name: instance
  configMap: {name: {{ include "vectorize.name" . }}-instance}
- name: models
{{- if .Values.models.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .Values.models.existingClaim }}}
{{- else if .Values.models.create }}
  persistentVolumeClaim: {claimName: {{ include "vectorize.name" . }}-models}
{{- else }}
  emptyDir: {}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "vectorize.mounts" -}}
- {name: home, mountPath: /var/lib/vectorize}
- {name: dagster-home, mountPath: /var/lib/vectorize/dagster}
- {name: instance, mountPath: /var/lib/vectorize/dagster/dagster.yaml, subPath: dagster.yaml, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: models, mountPath: /models}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "vectorize.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "vectorize.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* The parts of a container that all share, but for its variables. Its mounts come last. */}}
{{- define "vectorize.container" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "vectorize.containerSecurity" . | nindent 2 }}
envFrom:
  - configMapRef: {name: {{ include "vectorize.name" . }}-settings}
volumeMounts:
  {{- include "vectorize.mounts" . | nindent 2 }}
{{- end -}}

{{/* The parts of a pod that all share. Variables of Kubernetes' services could be taken for settings. */}}
{{- define "vectorize.pod" -}}
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "vectorize.podSecurity" . | nindent 2 }}
volumes:
  {{- include "vectorize.volumes" . | nindent 2 }}
{{- end -}}

{{- define "vectorize.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Fetches models; nothing to do where they are there. */}}
{{- define "vectorize.prefetch" -}}
- name: models
  image: {{ include "vectorize.image" . }}
  args: {{ concat (list "vectorize" "models" "prefetch") .Values.models.prefetch | toJson }}
  {{- include "vectorize.container" . | nindent 2 }}
  env:
    {{- include "vectorize.environment" . | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 512Mi}
    limits: {memory: 2Gi}
{{- end -}}

{{/* A pool: runs.default with what is said of it. GPUs are asked for, and their nodes' usual taint is tolerated. */}}
{{- define "vectorize.pool" -}}
{{- $pool := mergeOverwrite (deepCopy .default) (deepCopy .pool) -}}
{{- if $pool.gpus -}}
{{- $limits := merge (dict "nvidia.com/gpu" (toString $pool.gpus)) ($pool.resources.limits | default dict) -}}
{{- $_ := set $pool.resources "limits" $limits -}}
{{- $gpu := dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule" -}}
{{- $_ := set $pool "tolerations" (append ($pool.tolerations | default list) $gpu) -}}
{{- end -}}
{{- toYaml $pool -}}
{{- end -}}

{{- define "vectorize.check" -}}
{{- if and (eq .Values.runs.launcher "celery") (not .Values.redis.secret) -}}
{{- fail "runs.launcher: celery needs Redis: set redis.secret" -}}
{{- end -}}
{{- if and .Values.workers (ne .Values.runs.launcher "celery") -}}
{{- fail "workers need runs.launcher: celery" -}}
{{- end -}}
{{- range .Values.workers -}}
{{- if and .replicas .autoscaling -}}
{{- fail (printf "worker %s: autoscaling says how many replicas there are: leave replicas out" .name) -}}
{{- end -}}
{{- if and .autoscaling (gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas)) -}}
{{- fail (printf "worker %s: autoscaling.minReplicas is more than maxReplicas" .name) -}}
{{- end -}}
{{- if and .autoscaling (not .autoscaling.prometheus) -}}
{{- if not $.Values.redis.address -}}
{{- fail (printf "worker %s: autoscaling needs redis.address, or prometheus" .name) -}}
{{- end -}}
{{- if eq (toString .autoscaling.minReplicas) "0" -}}
{{- fail (printf "worker %s: by the lists of Redis alone a busy worker looks idle: minReplicas: 0 needs prometheus" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
