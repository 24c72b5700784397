"""Reads the ledger: projection, network-status, decisions about drift and leaks, history."""
