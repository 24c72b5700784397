"""A request becomes a durable intent, and its answer goes back; CHECK and STATUS are answered without an intent."""
