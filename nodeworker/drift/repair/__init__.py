"""Brings a drifted sandbox back to what the ledger records."""
