"""Compares the node with the ledger and repairs it: a difference is drift. CHECK uses the same comparison."""
