"""Pods and networks from a Kubernetes API server, cached by watches and on disk."""
