"""Reads pods and networks from a Kubernetes API server, with watches and a cache in memory and on disk."""
