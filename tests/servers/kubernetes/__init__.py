"""A real Kubernetes control plane for tests, and nodes that run each pod's command as processes of this machine."""
