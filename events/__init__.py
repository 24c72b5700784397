"""Event schema, its fold, and the ledger that stores events; imports neither the worker nor the reconciler."""
