"""Follows the ledger in batches, while this replica is the leader."""
