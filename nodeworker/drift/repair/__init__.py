"""Repairs a drifted sandbox: in place, or by running its plugins again."""
