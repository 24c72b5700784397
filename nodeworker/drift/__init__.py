"""Compares the node with the ledger: what differs is drift."""
