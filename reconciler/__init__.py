"""Tells people and programs what the ledger says. Shares ``events`` with the worker, and nothing else."""
