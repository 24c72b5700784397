"""What the worker writes to its ledger and reads back."""
