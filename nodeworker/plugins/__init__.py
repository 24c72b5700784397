"""Runs a CNI plugin, executed or built in, by the rules of the CNI specification."""
