"""What happened: the event schema, its fold, and the ledger that keeps it. Imports nothing from the other rooms."""
