"""Compares projection, ledger and reality."""
