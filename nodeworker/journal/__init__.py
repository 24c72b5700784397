"""What the worker writes to its ledger, reads back and purges."""
