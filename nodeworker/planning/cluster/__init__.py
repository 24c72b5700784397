"""Looks up pods and NetworkAttachmentDefinitions, in manifests or an API server, and networks in the node's files."""
