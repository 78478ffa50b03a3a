"""Qdrant, a server or its client's local mode."""
