"""The node as it is, held against what the ledger says of it: what differs is drift."""
