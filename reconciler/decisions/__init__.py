"""Decides which drift is repaired and which leak is freed, and sends the commands."""
