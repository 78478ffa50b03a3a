"""The benchmark `assessments`: from detections to risks."""
