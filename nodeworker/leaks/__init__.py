"""Finds resources on the node without an owner (leaks), and frees them on request."""
