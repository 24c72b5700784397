"""Decides which drift is repaired and which leak is reclaimed, and sends the commands."""
