"""The worker, one per node: turns the intents in the node ledger into interfaces and answers the runtime."""
