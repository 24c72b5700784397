"""Runs a CNI plugin by the rules of the CNI specification: its binary (executed), or the worker's own code (native)."""
