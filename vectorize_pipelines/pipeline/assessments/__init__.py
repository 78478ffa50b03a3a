"""Detections of traffic cameras: which of their groups are judged, and what a multimodal model says of them."""
