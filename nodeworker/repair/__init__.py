"""Bring a sandbox back to what the ledger says of it, on the node."""
