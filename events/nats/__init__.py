"""The ledger on NATS JetStream: streams, the embedded nats-server, and the uplink that copies a node to the hub."""
