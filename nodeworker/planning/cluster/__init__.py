"""Looks up pods and NetworkAttachmentDefinitions, from manifests or an API server."""
