"""Tells what happened, from events only."""
