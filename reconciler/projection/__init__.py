"""Tables that are computed from the ledger, and from nothing else."""
