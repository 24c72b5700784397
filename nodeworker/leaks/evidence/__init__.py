"""Collects evidence of leaks: files, addresses, namespaces, and the sandboxes that the container runtime lists."""
