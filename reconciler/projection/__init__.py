"""Tables computed from the ledger, and from nothing else."""
