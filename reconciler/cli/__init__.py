"""``plumbline``: the commands that people type."""
