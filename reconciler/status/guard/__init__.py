"""Restores a network-status that was edited or removed."""
