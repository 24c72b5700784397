"""A request becomes a durable intent, and its answer goes back to the entry point."""
