"""The event schema, its fold, and the ledger that stores events. Imports neither the worker nor the reconciler."""
