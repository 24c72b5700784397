"""Rebuilds the projection beside the one in use, from the ledger or a snapshot."""
