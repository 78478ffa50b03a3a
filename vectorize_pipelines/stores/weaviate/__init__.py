"""Weaviate, a server."""
