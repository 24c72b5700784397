"""Tables computed from the events of the ledger."""
