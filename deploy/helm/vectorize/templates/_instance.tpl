{{/* deploy/dagster.yaml, with the launcher of runs. What processes write is in their pods' logs, unless the values say. */}}
{{- define "vectorize.instance" -}}
{{- $instance := .Files.Get "files/dagster.yaml" | fromYaml -}}
{{- $logs := dict "module" "dagster._core.storage.noop_compute_log_manager" "class" "NoOpComputeLogManager" -}}
{{- $_ := set $instance "compute_logs" $logs -}}
{{- if eq .Values.runs.launcher "kubernetes" -}}
{{- $_ := set $instance "run_launcher" (include "vectorize.launcher" . | fromYaml) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $instance (deepCopy .Values.dagster)) -}}
{{- end -}}

{{- define "vectorize.launcher" -}}
module: vectorize_pipelines.runs.kubernetes.launcher
class: PooledK8sRunLauncher
config:
  job_namespace: {{ .Release.Namespace }}
  job_image: {{ include "vectorize.image" . }}
  image_pull_policy: {{ .Values.image.pullPolicy }}
  {{- with .Values.image.pullSecrets }}
  image_pull_secrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  service_account_name: {{ include "vectorize.name" . }}-run
  dagster_home: /var/lib/vectorize/dagster
  instance_config_map: {{ include "vectorize.name" . }}-instance
  env_config_maps: [{{ include "vectorize.name" . }}-settings]
  # The job's record is that of the run: one that was evicted, and put its work aside in time, would look complete.
  fail_pod_on_run_failure: true
  labels:
    {{- include "vectorize.selector" . | nindent 4 }}
  volumes:
    {{- include "vectorize.volumes" . | nindent 4 }}
  volume_mounts:
    {{- include "vectorize.mounts" . | nindent 4 }}
  security_context:
    {{- include "vectorize.containerSecurity" . | nindent 4 }}
  run_k8s_config:
    container_config:
      env:
        {{- include "vectorize.environment" . | nindent 8 }}
    pod_template_spec_metadata:
      annotations:
        {{- toYaml .Values.runs.annotations | nindent 8 }}
    pod_spec_config:
      enableServiceLinks: false
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: {{ .Values.runs.gracePeriodSeconds }}
      securityContext:
        {{- include "vectorize.podSecurity" . | nindent 8 }}
      {{- if .Values.models.prefetch }}
      initContainers:
        {{- include "vectorize.prefetch" . | nindent 8 }}
      {{- end }}
      # The run of a lost node is repeated by then: its pod need not be waited for.
      tolerations:
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 30}
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 30}
    job_spec_config:
      ttlSecondsAfterFinished: {{ .Values.runs.ttlSecondsAfterFinished }}
      backoffLimit: 0
      # The job remembers that its pod was evicted when that is gone.
      podFailurePolicy:
        rules:
          - action: FailJob
            onPodConditions: [{type: DisruptionTarget, status: "True"}]
  pools:
    {{- range list "text" "image" "document" "assessment" "general" "gpu-large" }}
    {{- $pool := dict "default" $.Values.runs.default "pool" (index $.Values.runs.pools . | default dict) }}
    {{- $pool = include "vectorize.pool" $pool | fromYaml }}
    {{ . }}:
      container_config:
        {{- with $pool.image }}
        image: {{ . }}
        {{- end }}
        resources:
          {{- toYaml $pool.resources | nindent 10 }}
      pod_spec_config:
        {{- include "vectorize.placement" $pool | default "{}" | nindent 8 }}
    {{- end }}
{{- end -}}
