"""Runs as jobs of a Kubernetes cluster: their launcher, and what their pods say of how they ended."""
