"""Finds what is held on the node without an owner, and frees it when asked."""
