"""One NATS connection: TLS, reconnect, pull consumers and core subscriptions."""
