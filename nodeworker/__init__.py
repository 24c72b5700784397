"""One per node: turns the intents of the node's ledger into interfaces, and answers the runtime."""
