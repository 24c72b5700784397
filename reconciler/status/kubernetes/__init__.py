"""Writes pod annotations and Events to the API server, and watches annotations."""
