"""Folds a batch of events into rows."""
