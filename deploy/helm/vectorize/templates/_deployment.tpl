{{/*
A Deployment. Called with a dict: root, component, values (replicas, resources, nodeSelector, tolerations, autoscaling:
then KEDA sets the replicas), strategy, args, and as YAML: ports, probes, environment, init, workspace (whether the list of
code locations is mounted).
*/}}
{{- define "vectorize.deployment" -}}
{{- $root := .root -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "vectorize.name" $root }}-{{ .component }}
  labels:
    {{- include "vectorize.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  {{- if not .values.autoscaling }}
  replicas: {{ .values.replicas | default 1 }}
  {{- end }}
  strategy:
    {{- .strategy | nindent 4 }}
  selector:
    matchLabels:
      {{- include "vectorize.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  template:
    metadata:
      labels:
        {{- include "vectorize.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
      annotations:
        # Pods are made again when what they read at their start has changed.
        checksum/config: {{ include (print $root.Template.BasePath "/config.yaml") $root | sha256sum }}
    spec:
      serviceAccountName: {{ include "vectorize.name" $root }}-{{ .account | default .component }}
      automountServiceAccountToken: {{ .token | default false }}
      terminationGracePeriodSeconds: {{ .grace | default 30 }}
      {{- include "vectorize.pod" $root | nindent 6 }}
      {{- include "vectorize.placement" .values | nindent 6 }}
      {{- with .init }}
      initContainers:
        {{- . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ .image | default (include "vectorize.image" $root) }}
          args: {{ toJson .args }}
          {{- include "vectorize.container" $root | nindent 10 }}
            {{- if .workspace }}
            - {name: instance, mountPath: /etc/vectorize/workspace.yaml, subPath: workspace.yaml, readOnly: true}
            {{- end }}
          env:
            {{- include "vectorize.environment" $root | nindent 12 }}
            {{- with .environment }}
            {{- . | nindent 12 }}
            {{- end }}
          {{- with .probes }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- with .ports }}
          ports:
            {{- . | nindent 12 }}
          {{- end }}
          resources:
            {{- toYaml .values.resources | nindent 12 }}
{{- end -}}
