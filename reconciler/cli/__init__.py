"""The plumbline command."""
