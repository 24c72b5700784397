"""Describes what happened, from events only."""
